"""How the monitor and its device are shut in: what a fresh clone does before it serves a guest.

A guest that breaks out of its virtual machine lands in one of these processes. Runs in the forked
child, so it uses only what the keeper has imported. Standard library and ``agentd.linux`` only.
"""

import os
from collections.abc import Callable, Sequence

from agentd.linux import abi, caps, landlock, process, rlimits, seccomp
from agentd.linux.kernel import KERNEL

#: Every child of the keeper is born in these; the network is the caller's choice.
NAMESPACES = abi.CLONE_NEWPID | abi.CLONE_NEWIPC | abi.CLONE_NEWUTS | abi.CLONE_NEWCGROUP
#: A directory that is everywhere.
STAGE = "/tmp"
# Programs and libraries that a monitor loads, its firmware among them.
_PROGRAMS = ("/usr", "/bin", "/lib", "/lib64", "/nix/store")
_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/proc/sys/fs/nr_open")
_NET_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf")
# A share keeps a descriptor for each file that the guest has looked at.
_OPEN_FILES = 65536


class ConfineError(Exception):
    """A step failed; the text names it."""


class Cell:
    """The confinement of one process: its user, the files it reads, whether it has a network.

    ``readable`` and ``writable`` are descriptors of files and directories; ``gid`` None is the
    same number as ``uid``. ``programs`` is False for a process that runs no other program.
    ``stage`` is a detached mount that it finds at STAGE, where nobody else sees it.
    """

    def __init__(
        self,
        *,
        uid: int | None,
        gid: int | None = None,
        net: bool = False,
        programs: bool = False,
        readable: Sequence[int] = (),
        writable: Sequence[int] = (),
        stage: int | None = None,
        filter_: bytes | None = None,
    ) -> None:
        self.uid = uid
        self.gid = uid if gid is None else gid
        self.net = net
        self.programs = programs
        self.readable = readable
        self.writable = writable
        self.stage = stage
        self.filter = filter_

    @property
    def flags(self) -> int:
        """Return the flags for clone3(2)."""
        own_net = 0 if self.net else abi.CLONE_NEWNET
        return NAMESPACES | own_net | (0 if self.stage is None else abi.CLONE_NEWNS)


def confine(cell: Cell) -> list[str]:
    """Shut this process in; the names of the controls that now hold. Raises ConfineError."""
    done: list[str] = []
    steps: tuple[tuple[str, Callable[[], bool | None]], ...] = (
        ("stage", lambda: _stage(cell)),
        ("rlimits", _rlimits),
        ("no_new_privs", process.set_no_new_privs),
        ("bounding", caps.drop_bounding_if_allowed),  # a change of user takes the right to
        ("user", lambda: _identity(cell)),
        ("capabilities", caps.drop_all),
        ("landlock", lambda: _landlock(cell)),
        ("seccomp", lambda: _seccomp(cell)),
    )
    for name, step in steps:
        try:
            if step() is not False:
                done.append(name)
        except OSError as error:
            raise ConfineError(f"{name}: {error}") from None
    return done


def _stage(cell: Cell) -> bool:
    if cell.stage is None:
        return False
    KERNEL.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
    KERNEL.move_mount(cell.stage, "", abi.AT_FDCWD, STAGE, abi.MOVE_MOUNT_F_EMPTY_PATH)
    return True


def _rlimits() -> None:
    rlimits.apply({"core": 0, "open_files": _OPEN_FILES, "message_queues": 0})


def _identity(cell: Cell) -> bool:
    """Become, as root, a user of this machine alone that owns nothing; else stay the caller."""
    if cell.uid is None or cell.gid is None:
        return False
    os.setgroups([])
    os.setresgid(cell.gid, cell.gid, cell.gid)
    os.setresuid(cell.uid, cell.uid, cell.uid)
    return True


def _landlock(cell: Cell) -> bool:
    """Reads what it needs to start, writes nothing; False where Landlock is absent or refused."""
    if not landlock.abi_version():
        return False
    try:
        _restrict(cell)
    except OSError as error:
        if error.errno in landlock.UNAVAILABLE:
            return False
        raise
    return True


def _restrict(cell: Cell) -> None:
    with landlock.Ruleset(handle_net=not cell.net) as rules:
        if cell.programs:
            for path in _PROGRAMS:
                _allow(rules, path, landlock.READ | landlock.EXEC)
            for path in (*_FILES, *(_NET_FILES if cell.net else ())):
                _allow(rules, path, landlock.READ)
        for fd in cell.readable:
            rules.allow_path(fd, landlock.READ)
        for fd in cell.writable:
            rules.allow_path(fd, landlock.READ | landlock.WRITE)
        rules.restrict()


def _allow(rules: landlock.Ruleset, path: str, access: int) -> None:
    if os.path.exists(path):
        rules.allow_path(path, access)


def _seccomp(cell: Cell) -> bool:
    if cell.filter is None:
        return False
    seccomp.install(cell.filter)
    return True
