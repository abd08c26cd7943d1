"""Landlock (Linux 5.13): a process gives up access to files, TCP ports, and other processes.

Build a ``Ruleset`` ahead, in the parent, and call ``restrict`` in the child: that is one system
call. Not covered by any version known here: UDP and other sockets, chmod, chown, setxattr, and
stat of a path. See https://docs.kernel.org/userspace-api/landlock.html.
"""

import errno
import os
import stat
import struct
from typing import Literal, NamedTuple, Self

from agentd.linux import abi
from agentd.linux.kernel import KERNEL, Kernel

# LANDLOCK_ACCESS_FS_*: name, bit, and the ABI that brought it.
_FS: tuple[tuple[str, int, int], ...] = (
    ("execute", 1 << 0, 1),
    ("write_file", 1 << 1, 1),
    ("read_file", 1 << 2, 1),
    ("read_dir", 1 << 3, 1),
    ("remove_dir", 1 << 4, 1),
    ("remove_file", 1 << 5, 1),
    ("make_char", 1 << 6, 1),
    ("make_dir", 1 << 7, 1),
    ("make_reg", 1 << 8, 1),
    ("make_sock", 1 << 9, 1),
    ("make_fifo", 1 << 10, 1),
    ("make_block", 1 << 11, 1),
    ("make_sym", 1 << 12, 1),
    ("refer", 1 << 13, 2),
    ("truncate", 1 << 14, 3),
    ("ioctl_dev", 1 << 15, 5),
)
_NET: tuple[tuple[str, int, int], ...] = (("bind_tcp", 1 << 0, 4), ("connect_tcp", 1 << 1, 4))
_SCOPES: tuple[tuple[str, int, int], ...] = (
    ("abstract_unix_socket", 1 << 0, 6),
    ("signal", 1 << 1, 6),
)
_BIT = {name: bit for name, bit, _ in _FS}

ALL = (1 << 16) - 1
EXEC = _BIT["execute"]
READ = _BIT["read_file"] | _BIT["read_dir"]
IOCTL_DEV = _BIT["ioctl_dev"]
TRUNCATE = _BIT["truncate"]
# No rule gives device nodes: a device file is a way around every path rule.
_DEVICE_NODES = _BIT["make_char"] | _BIT["make_block"]
WRITE = ALL & ~(EXEC | READ | IOCTL_DEV | _DEVICE_NODES)
# What the kernel takes for a path that is not a directory; any other right is EINVAL there.
_NON_DIRECTORY = EXEC | _BIT["write_file"] | _BIT["read_file"] | _BIT["truncate"] | IOCTL_DEV

# struct landlock_path_beneath_attr is packed: 12 bytes.
_PATH_RULE = struct.Struct("=Qi")
# Absent, off at boot, or hidden by the seccomp filter of an older container runtime.
UNAVAILABLE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


class Handled(NamedTuple):
    """Rights that a ruleset denies unless a rule allows them; named as in the kernel's headers."""

    abi: int
    fs: tuple[str, ...]
    net: tuple[str, ...]
    scopes: tuple[str, ...]


def abi_version(kernel: Kernel = KERNEL) -> int:
    """Returns the kernel's Landlock ABI; 0 where Landlock is absent, disabled or not reachable: a
    seccomp profile around us answers with whatever it wants."""
    try:
        return kernel.syscall(
            abi.SYS.landlock_create_ruleset, 0, 0, abi.LANDLOCK_CREATE_RULESET_VERSION
        )
    except OSError:
        return 0


def refused() -> str:
    """Names the first of Landlock's calls that does not work here, and why; empty where all do.

    A seccomp profile around us may allow the one that tells the ABI alone. They are tried in a
    thread of their own, for a restricted thread binds no other, and ends with it.
    """
    import threading  # of the host alone: to the agent it is a millisecond

    found: list[str] = []
    trial = threading.Thread(target=_try_calls, args=(found,), name="agentd-landlock")
    try:
        trial.start()
    except RuntimeError:  # no thread is left; nor is that Landlock's fault
        return ""
    trial.join()
    return found[0] if found else ""


def _try_calls(found: list[str]) -> None:
    call = "landlock_create_ruleset"
    try:
        with Ruleset(handled_fs=EXEC, handle_net=False, scopes=False) as rules:
            call = "landlock_add_rule"
            rules.allow_path("/", EXEC)
            call = "prctl"
            KERNEL.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
            call = "landlock_restrict_self"
            rules.restrict()
    except OSError as error:
        found.append(f"{call} is refused here: {error.strerror}")


def covers(version: int, *, net: bool) -> str:
    """Return what a ruleset that handles everything governs at that ABI; ``net``: TCP too, if it
    can."""
    words = ["files"]
    words += ["TCP"] if net and _mask(_NET, version) else []
    words += ["abstract sockets", "signals"] if _mask(_SCOPES, version) else []
    return ", ".join(words)


class Ruleset:
    """A ruleset: everything handled is denied, then rules allow.

    ``handled_fs`` is "all" or a mask of this module's access sets. ``abi`` is asked of the kernel
    when not given. Rights that the ABI does not know are left out; ``handled`` says what is left,
    and the caller refuses where that is too little. Raises OSError (EOPNOTSUPP without Landlock).
    """

    def __init__(
        self,
        handled_fs: Literal["all"] | int = "all",
        handle_net: bool = True,
        scopes: bool = True,
        abi: int | None = None,
        kernel: Kernel = KERNEL,
    ) -> None:
        self._kernel = kernel
        self.fd = -1
        version = abi_version(kernel) if abi is None else abi
        if version < 1:
            raise OSError(
                errno.EOPNOTSUPP, "landlock is not available: boot with lsm=landlock,... (5.13+)"
            )
        self._fs = _mask(_FS, version) & (ALL if handled_fs == "all" else handled_fs)
        self._net = _mask(_NET, version) if handle_net else 0
        scoped = _mask(_SCOPES, version) if scopes else 0
        self.handled = Handled(
            version, _names(_FS, self._fs), _names(_NET, self._net), _names(_SCOPES, scoped)
        )
        self._log_flags = _log_flags(version)
        self.fd = _create(kernel, version, (self._fs, self._net, scoped))

    def allow_path(self, where: int | str | os.PathLike[str], access: int) -> None:
        """Allow ``access`` on a file, or beneath a directory; a symbolic link means its target.

        Rights that only directories have are left out for other files. A descriptor stays the
        caller's. A rule counts for the mount it was made on, not for one mounted over it later.
        """
        if isinstance(where, int):
            self._allow_fd(where, access)
            return
        fd = os.open(where, os.O_PATH | os.O_CLOEXEC)
        try:
            self._allow_fd(fd, access)
        finally:
            os.close(fd)

    def restrict(self) -> Handled:
        """Bind the calling thread and its future children, for ever.

        The caller set no_new_privs first (else EPERM). Denials are kept out of the audit log
        (ABI 7): untrusted code could flood it.
        """
        self._kernel.syscall(abi.SYS.landlock_restrict_self, self.fd, self._log_flags)
        return self.handled

    def close(self) -> None:
        """Closes it, idempotent. Domains that were entered stay in force."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _allow_fd(self, fd: int, access: int) -> None:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _NON_DIRECTORY
        access &= self._fs
        if access:  # the kernel answers ENOMSG to a rule that allows nothing
            rule = _PATH_RULE.pack(access, fd)
            kind = abi.LANDLOCK_RULE_PATH_BENEATH
            self._kernel.syscall(abi.SYS.landlock_add_rule, self.fd, kind, rule, 0)


def _create(kernel: Kernel, version: int, masks: tuple[int, int, int]) -> int:
    """A ruleset's descriptor (close-on-exec). Older kernels answer E2BIG to a longer struct."""
    words = 1 if version < 4 else 2 if version < 6 else 3
    attr = struct.pack(f"={words}Q", *masks[:words])
    return kernel.syscall(abi.SYS.landlock_create_ruleset, attr, len(attr), 0)


def _log_flags(version: int) -> int:
    if version < 7:
        return 0
    return (
        abi.LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF | abi.LANDLOCK_RESTRICT_SELF_LOG_SUBDOMAINS_OFF
    )


def _mask(table: tuple[tuple[str, int, int], ...], version: int) -> int:
    return sum(bit for _, bit, since in table if since <= version)


def _names(table: tuple[tuple[str, int, int], ...], mask: int) -> tuple[str, ...]:
    return tuple(name for name, bit, _ in table if bit & mask)
