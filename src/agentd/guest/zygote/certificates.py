"""The certificates that a sandbox trusts whose connections are read: the system's, and those of an
authority of its own.

They are a file of the sandbox's own, mounted where systems have theirs before anything untrusted
runs; programs that look elsewhere are told by variables (``sandbox.backends.certificates``).
Standard library only.
"""

import os
import stat

from agentd.guest.zygote.root import CERTIFICATES, write
from agentd.linux import abi
from agentd.linux.kernel import Kernel

BUNDLE = f"{CERTIFICATES}/bundle.pem"
#: Where Debian, Alpine, Red Hat, SUSE and Arch have all that they trust in one file.
PLACES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/usr/lib/ssl/cert.pem",
)
_MAX_BYTES = 8 << 20
_KERNELS = ("/proc/", "/sys/", "/dev/")  # where an image may have a link lead to
_FLAGS = abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC


def show(authority: str, kernel: Kernel) -> None:
    """``authority`` is PEM. Raises OSError."""
    places = _places()
    kernel.mount("tmpfs", CERTIFICATES, "tmpfs", _FLAGS, "mode=0755,size=16m,nr_inodes=8")
    write(BUNDLE, bundle(next(iter(places), None), authority))
    kernel.mount_setattr(abi.AT_FDCWD, CERTIFICATES, 0, set_=abi.MOUNT_ATTR_RDONLY)
    for place in places:
        kernel.mount(BUNDLE, place, None, abi.MS_BIND)


def bundle(system: str | None, authority: str) -> bytes:
    """Return what the file at ``system`` has, and the authority's certificate."""
    text = b""
    if system is not None:
        with open(system, "rb") as file:
            text = file.read(_MAX_BYTES)
    return text.rstrip(b"\n") + b"\n" + authority.encode()


def _places() -> list[str]:
    """The files that are there, behind links, each once."""
    found: dict[str, None] = {}
    for place in PLACES:
        path = os.path.realpath(place)
        if path.startswith(_KERNELS):
            continue
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                found[path] = None
        except OSError:
            continue
    return list(found)
