"""The certificates that a sandbox trusts whose connections are read: the system's, and those of an
authority of its own.

They are a file of the sandbox's own, mounted where systems have theirs before anything untrusted
runs, and one of Java's, mounted over its machines'; programs that look elsewhere are told by
variables (``sandbox.backends.certificates``).
Standard library only.
"""

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress

from agentd.guest.zygote import keystore
from agentd.guest.zygote.root import CERTIFICATES, write
from agentd.linux import abi, paths
from agentd.linux.kernel import Kernel

BUNDLE = f"{CERTIFICATES}/bundle.pem"
STORE = f"{CERTIFICATES}/cacerts"
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
_MAX_BYTES = 8 << 20  # of a file; a store that is made of one has at most 13 << 20
_KERNELS = ("/proc/", "/sys/", "/dev/")  # where an image may have a link lead to
_FLAGS = abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC


def show(authority: str, kernel: Kernel, top: str = "") -> None:
    """``authority`` is PEM; ``top`` is where the root is that has it, if not ours. Raises
    OSError."""
    found, folder = places(top), top + CERTIFICATES
    made = contents([read(covered) for covered in found.values()], authority)
    kernel.mount("tmpfs", folder, "tmpfs", _FLAGS, "mode=0755,size=32m,nr_inodes=8")
    for name, content in made.items():
        write(top + name, content)
    kernel.mount_setattr(abi.AT_FDCWD, folder, 0, set_=abi.MOUNT_ATTR_RDONLY)
    for name in made:
        for place in found[name]:
            kernel.mount(top + name, place, None, abi.MS_BIND)


def contents(own: Sequence[bytes], authority: str) -> dict[str, bytes]:
    """Return what BUNDLE and STORE have: of ``own``, the system's file and a store of Java's, each
    empty where there is none, with the authority, if there is one. No STORE where nothing is known
    of the one that is there."""
    system, store = own
    made = {BUNDLE: system.rstrip(b"\n") + b"\n" + authority.encode()}
    if store and authority:
        store = keystore.store(store, system, authority.encode())
    return made | ({STORE: store} if store else {})


def read(files: Sequence[str]) -> bytes:
    """Return what the first of them has; nothing where there is none. Raises OSError."""
    if not files:
        return b""
    with open(files[0], "rb") as file:
        return file.read(_MAX_BYTES)


def places(top: str = "") -> dict[str, list[str]]:
    """Return what BUNDLE and STORE are mounted over: the files that are there, behind links, each
    once."""
    of_java = keystore.places(lambda folder: _names(folder, top))
    return {BUNDLE: _files(PLACES, top), STORE: _files(of_java, top)}


def _files(paths_: Iterable[str], top: str) -> list[str]:
    found: dict[str, None] = {}
    for place in paths_:
        try:
            path = _behind(place, top)
            if stat.S_ISREG(os.stat(path).st_mode):
                found[path] = None
        except OSError:
            continue
    return list(found)


def _names(folder: str, top: str) -> list[str]:
    with suppress(OSError):
        return os.listdir(_behind(folder, top))
    return []


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
