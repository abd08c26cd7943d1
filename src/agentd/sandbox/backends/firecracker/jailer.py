"""The jail: its folder, the jailer's command line, and safe ways into a folder that a monitor owns.

Whoever breaks out of the virtual machine is the user that owns the jail's root, and can put a
link wherever we expect a file or a socket. So nothing in it is reached by path from outside: each
step is opened without following links, and a socket is dialled through its descriptor.
docs/jailer.md of github.com/firecracker-microvm/firecracker describes the layout.
"""

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Collection
from typing import NamedTuple

from agentd.guest.zygote import scratch
from agentd.model.errors import BackendLost, SandboxError
from agentd.sandbox.backends.cgroups import is_stale

#: Not below /run, which is mounted nodev: the jail has a /dev/kvm of its own.
BASE = "/var/lib/agentd/jails"
EXEC_NAME = "firecracker"
API = "api"
_OPEN_FILES = 2048  # the jailer's own default; vsock connections come out of it
# Beside the guest's memory, which a snapshot writes in one file.
_FILE_SLACK = 64 << 20


class Jail(NamedTuple):
    """``id`` is also the folder's name."""

    base: str
    id: str
    uid: int

    @property
    def folder(self) -> str:
        """Return the folder of all that is on disk of this machine."""
        return f"{self.base}/{EXEC_NAME}/{self.id}"

    @property
    def root(self) -> str:
        return f"{self.folder}/root"


def command(jail: Jail, jailer: str, firecracker: str, memory: int) -> list[str]:
    """``{cgroup}`` is for the group it is started in, as two words or none.

    ``memory`` is the guest's, in bytes. Seccomp is on by not being switched off.
    """
    return [
        jailer,
        *("--id", jail.id),
        *("--exec-file", firecracker),
        *("--uid", str(jail.uid), "--gid", str(jail.uid)),
        *("--chroot-base-dir", jail.base),
        "{cgroup}",
        *("--resource-limit", f"fsize={memory + _FILE_SLACK}"),
        *("--resource-limit", f"no-file={_OPEN_FILES}"),
        "--new-pid-ns",
        "--",
        *("--api-sock", API),
        "--enable-pci",  # Debian's kernel has virtio-pci built in, and virtio-mmio not
    ]


def prepare(jail: Jail, files: Collection[str]) -> None:
    """Make the root with an empty file for each that will be bound over it. Raises SandboxError.

    A folder that is there already is another machine's, and is left alone.
    """
    try:
        os.makedirs(f"{jail.base}/{EXEC_NAME}", 0o711, exist_ok=True)
        os.mkdir(jail.folder, 0o711)
        try:
            os.mkdir(jail.root, 0o700)
            for name in files:
                flags = os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                os.close(os.open(f"{jail.root}/{name}", flags, 0o444))
        except OSError:
            remove(jail)
            raise
    except OSError as error:
        raise SandboxError(
            "the jail cannot be made", cause=str(error), remediation=f"see to {jail.base}"
        ) from error


def listen(jail: Jail, name: str, backlog: int) -> socket.socket:
    """Makes a listener at a name in the root that its monitor may connect to; before that is the
    monitor's. The caller's to close. Raises SandboxError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        root = os.open(jail.root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{root}/{name}")  # however long the jail's path is
            os.chown(name, jail.uid, jail.uid, dir_fd=root, follow_symlinks=False)
        finally:
            os.close(root)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise SandboxError(f"cannot listen at {name} in the jail", cause=str(error)) from error
    return listener


def remove(jail: Jail) -> None:
    """Whatever a monitor left in it, links not followed; never raises. Nothing may run in it."""
    scratch.remove(jail.folder)


def reap(base: str) -> None:
    """Remove the jails of processes that have died, guards included; never raises."""
    parent = f"{base}/{EXEC_NAME}"
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if is_stale(name):
                scratch.remove(f"{parent}/{name}")


class Root:
    """The jail's root, opened once it belongs to the monitor; ``close`` it."""

    def __init__(self, jail: Jail) -> None:
        """Raises BackendLost."""
        self._uid = jail.uid
        self._pinning = threading.Lock()
        self._sockets: dict[str, int] = {}
        try:
            self.fd = os.open(jail.root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise BackendLost("the jail is gone", cause=str(error)) from error

    def socket_path(self, name: str) -> str:
        """Returns a path that leads to this very socket and to no other, however long the jail's
        is.

        Raises FileNotFoundError until it is there, BackendLost for anything but a socket.
        """
        with self._pinning:
            if name not in self._sockets:
                self._sockets[name] = self._pin(name)
            return f"/proc/self/fd/{self._sockets[name]}"

    def _pin(self, name: str) -> int:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != self._uid:
            os.close(fd)
            raise BackendLost(f"{name} in the jail is not the monitor's socket")
        return fd

    def open_file(self, name: str, most: int) -> tuple[int, int]:
        """Opens a file to read that the monitor wrote, and its size, at most ``most``.

        Raises SandboxError for anything but a plain file of one name.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=self.fd)
        except OSError as error:
            raise SandboxError(f"the monitor left no {name}", cause=str(error)) from error
        found = os.fstat(fd)
        plain = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == self._uid
        if not plain or found.st_size > most:
            os.close(fd)
            raise SandboxError(f"{name} in the jail is not what the monitor was asked for")
        return fd, found.st_size

    def remove_file(self, name: str) -> None:
        """Remove a name, whatever it is; quiet where there is none."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            return

    def close(self) -> None:
        for fd in (*self._sockets.values(), self.fd):
            if fd >= 0:
                os.close(fd)
        self._sockets, self.fd = {}, -1
