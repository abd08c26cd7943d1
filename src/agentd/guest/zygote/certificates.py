"""The certificates that a sandbox trusts whose connections are read: the system's, and those of an
authority of its own.

They are a file of the sandbox's own, mounted where systems have theirs before anything untrusted
runs; programs that look elsewhere are told by variables (``sandbox.backends.certificates``).
Standard library only.
"""

import errno
import os
import stat

from agentd.guest.zygote.root import CERTIFICATES, write
from agentd.linux import abi, paths
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


def show(authority: str, kernel: Kernel, top: str = "") -> None:
    """``authority`` is PEM; ``top`` is where the root is that has it, if not ours. Raises
    OSError."""
    found = places(top)
    folder, file = top + CERTIFICATES, top + BUNDLE
    kernel.mount("tmpfs", folder, "tmpfs", _FLAGS, "mode=0755,size=16m,nr_inodes=8")
    write(file, bundle(next(iter(found), None), authority))
    kernel.mount_setattr(abi.AT_FDCWD, folder, 0, set_=abi.MOUNT_ATTR_RDONLY)
    for place in found:
        kernel.mount(file, place, None, abi.MS_BIND)


def bundle(system: str | None, authority: str) -> bytes:
    """Return what the file at ``system`` has, and the authority's certificate."""
    text = b""
    if system is not None:
        with open(system, "rb") as file:
            text = file.read(_MAX_BYTES)
    return text.rstrip(b"\n") + b"\n" + authority.encode()


def places(top: str = "") -> list[str]:
    """Return the files that are there, behind links, each once."""
    found: dict[str, None] = {}
    for place in PLACES:
        try:
            path = _behind(place, top)
            if stat.S_ISREG(os.stat(path).st_mode):
                found[path] = None
        except OSError:
            continue
    return list(found)


def _behind(place: str, top: str) -> str:
    """Where a link of the root's leads, within it. Raises OSError."""
    path = os.path.realpath(place)
    if top:
        root = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = paths.open_inside(root, place, os.O_PATH)
        finally:
            os.close(root)
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    if path.removeprefix(top).startswith(_KERNELS):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)
    return path
