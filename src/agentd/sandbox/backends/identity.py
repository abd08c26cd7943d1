"""Who sandboxes are outside, where agentd is root that may: each has 65,536 ids of its own.

A block in use has a file in ``FOLDER``, named by its first id and locked by whoever has it. A file
that nobody has locked was left behind: its block comes back once no process of its ids is left, and
nothing that is noted in it. No process of a sandbox's has the file: what is noted root removes.
docs/adr/0013 has the reasons.
"""

import contextlib
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from typing import NamedTuple

from agentd.guest.zygote import scratch
from agentd.linux import privileges, subids
from agentd.model.errors import InvalidInput, SandboxError

SIZE = 1 << 16
FOLDER = "/run/agentd-ids"
FALLBACK = "/dev/shm/agentd-ids"  # in which others cannot rename or remove what is root's
SUBORDINATE = subids.FILES
# Above the ranges of system users, login users and subordinate ids; what it spans by default ends
# below what systemd gives to others (its UIDS-GIDS.md).
START = 2_000_000_000
BLOCKS = 2048
# Before there were blocks every sandbox ran as START, and every monitor as one of the 65,536 ids
# after it: such ones may live on in a supervisor of then.
_OLD = range(START, START + 2 * SIZE)
_MOST = (1 << 32) - 2  # the kernel's (uid_t)-1 means "none"
_SIGN = 1 << 31
_MAX_NOTES = 1 << 12
_MAX_DIGITS = 10
_LEAST = 4  # one for the zygote, one for a clone ahead, and two sandboxes


class Range(NamedTuple):
    """``blocks`` blocks, the first of which begins with the id ``start``."""

    start: int = START
    blocks: int = BLOCKS

    @property
    def end(self) -> int:
        return self.start + self.blocks * SIZE

    def usable(self) -> range:
        """Returns the first ids of its blocks."""
        return range(_OLD.stop if self.start in _OLD else self.start, self.end, SIZE)


class Block:
    """``id`` is the first of its ids. ``fd`` is the lock: whoever has it keeps the block."""

    def __init__(self, id_: int, fd: int) -> None:
        self.id = id_
        self.fd = fd

    def note(self, path: str) -> None:
        """Notes a folder of its ids: removed before others get them, should we be killed.

        Raises SandboxError."""
        try:
            os.write(self.fd, os.fsencode(path) + b"\0")
        except OSError as error:
            raise SandboxError(
                f"it cannot be noted whose {path} is",
                cause=f"{folder()}/{self.id}: {error.strerror}",
                remediation=f"make room where {folder()} lies",
            ) from error

    def release(self, ended: bool = True) -> None:
        """Give it back: nothing of it is left. Where that is not sure (``ended`` False) it comes
        back by a look at all processes; idempotent."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        if ended and _is_there(fd, self.id):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{folder()}/{self.id}")
        os.close(fd)


_lock = threading.Lock()
_range: Range | None = None
# Where to look next; another process begins elsewhere.
_cursor = os.getpid() * 7919
_swept = False


def configure(found: Range) -> None:
    """Set what ``take`` gives from now on. Raises InvalidInput."""
    global _range  # noqa: PLW0603  (a fact of the machine, told once)
    problem = check(found)
    if problem is not None:
        raise InvalidInput(f"ids.{problem[0]}: {problem[1]}", remediation=problem[2])
    _range = found


def configured() -> Range:
    """Return the range of ``configure``, or the environment's where nobody read a configuration."""
    if _range is None:
        configure(Range(_variable("START", START), _variable("BLOCKS", BLOCKS)))
    assert _range is not None  # noqa: S101  (for the type checker)
    return _range


def check(found: Range) -> tuple[str, str, str] | None:
    """Returns the key of ``[ids]`` that is wrong, why, and its fix."""
    if found.start < SIZE:
        return "start", f"{found.start} lies among the machine's own users", f"use {START}"
    if (found.start - START) % SIZE:
        near = found.start - (found.start - START) % SIZE + SIZE
        if near + found.blocks * SIZE > _MOST:
            near = START + found.blocks * SIZE
        why = f"{found.start} would let the blocks of two agentd processes overlap"
        return "start", why, f"use {START}, or whole blocks of {SIZE} from it, such as {near}"
    if found.end - 1 > _MOST:
        most = max((_MOST + 1 - found.start) // SIZE, 0)
        why = f"{found.blocks} blocks from {found.start} on end above the kernel's last id"
        return "blocks", why, f"use at most {most}"
    if len(found.usable()) < _LEAST:
        return "blocks", f"{found.blocks} are too few for one sandbox", "use 8 or more"
    return None


def collision(found: Range) -> str | None:
    """Return whose subordinate ids (subuid(5)), for containers, overlap with the range."""
    for path in SUBORDINATE:
        for who, ids in subids.given(path):
            if ids.start < found.end and found.start < ids.stop:
                return f"{found.start} to {found.end - 1} overlap what {path} gives {who!r}"
    return None


def hindrance(of: Range | None = None) -> str:
    """Return why sandboxes are the caller outside, and no users of their own; empty where they are
    not."""
    found = configured() if of is None else of
    return privileges.no_users(found.start, found.end)


def available() -> bool:
    """Return whether each sandbox has a block: nothing else asks whether agentd runs as root."""
    return not hindrance()


def take(of: Range | None = None) -> Block | None:
    """Takes a block that nobody has; None where sandboxes are the caller (``hindrance``: why).

    Raises SandboxError."""
    global _cursor, _swept  # noqa: PLW0603
    if hindrance(of):
        return None
    ids = (configured() if of is None else of).usable()
    try:
        with _lock:
            _make_folder()
            for last in (False, True):
                for step in range(len(ids)):
                    index = (_cursor + step) % len(ids)
                    fd = _create(ids[index])
                    if fd is not None:
                        _cursor = index + 1
                        return Block(ids[index], fd)
                    if not _swept:
                        _swept = True
                        _sweep()
                if not last:
                    _sweep()
    except OSError as error:
        raise SandboxError(
            "no block of user ids can be had",
            cause=str(error),
            remediation=f"see to {folder()}, which must be root's, and writable",
        ) from error
    raise SandboxError(
        f"no block of user ids is free: all {len(ids)} from {ids[0]} on are in use",
        remediation="end sandboxes, or raise ids.blocks in the configuration",
    )


def reclaim() -> None:
    """Free what processes that were killed have left behind; quiet where it cannot."""
    with contextlib.suppress(OSError), _lock:
        if available():
            _sweep()


def in_use(of: Range) -> int:
    """Return how many of its blocks somebody has, or has left behind."""
    ids = of.usable()
    with contextlib.suppress(FileNotFoundError):
        return sum(name.isdecimal() and int(name) in ids for name in os.listdir(folder()))
    return 0


def _variable(name: str, default: int) -> int:
    text = os.environ.get(f"AGENTD_IDS__{name}", str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise InvalidInput(
            f"AGENTD_IDS__{name}={text!r} is no number", remediation=f"use {default}"
        )
    return int(text)


def folder() -> str:
    """``FOLDER``, or ``FALLBACK`` where that is read-only, as in a container without a writable
    root: whoever shares these ids with us sees the same then."""
    known = FOLDER if os.path.isdir(FOLDER) else os.path.dirname(FOLDER)
    if os.access(known, os.W_OK) or not os.access(os.path.dirname(FALLBACK), os.W_OK):
        return FOLDER
    return FALLBACK


def _make_folder() -> None:
    """Make it where it is not there, and see that it is as it must be."""
    try:
        found = os.lstat(folder())
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder(), 0o700)
        found = os.lstat(folder())
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise PermissionError(f"{folder()} is not a directory that root alone may write")


def _create(id_: int) -> int | None:
    """The locked file of a block that had none, and whose first id nobody runs as: somebody may
    have removed its file."""
    with contextlib.suppress(ProcessLookupError):
        os.getpriority(os.PRIO_USER, (id_ ^ _SIGN) - _SIGN)  # which takes an int of 32 bits
        return None
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(f"{folder()}/{id_}", flags, 0o600)
    except FileExistsError:
        return None
    if _locks(fd, id_):
        return fd
    os.close(fd)  # a sweep came between, and took it for one that was left behind
    return None


def _locks(fd: int, id_: int) -> bool:
    """Return whether we have its lock now, and it is still the block's file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _is_there(fd, id_)


def _is_there(fd: int, id_: int) -> bool:
    """Return whether a file is still the block's."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(f"{folder()}/{id_}"))
    except FileNotFoundError:
        return False


def _sweep() -> None:
    """Free what was left behind and is not used any more."""
    left: dict[int, int] = {}
    try:
        for name in os.listdir(folder()):
            if not name.isdecimal():
                continue
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(f"{folder()}/{name}", flags)
                if _locks(fd, int(name)):
                    left[int(name)] = fd
                else:
                    os.close(fd)
        # After the locks: nobody who begins now can have one of them.
        alive = _alive() if left else set()
        for id_, fd in left.items():
            lives = any(id_ <= each < id_ + SIZE for each in alive)
            if not lives and _cleared(fd):
                os.unlink(f"{folder()}/{id_}")
    finally:
        for fd in left.values():
            os.close(fd)


def _alive() -> set[int]:
    """The user ids of every process, zombies as well: one of them is being reaped by somebody."""
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            found.update(_ids_of(name))
    return found


def _ids_of(pid: str) -> Iterator[int]:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return
    for line in text.splitlines():
        if line.startswith((b"Uid:", b"Gid:")):
            yield from map(int, line.split()[1:])


def _cleared(fd: int) -> bool:
    """Return whether none of the folders that were noted is left; removes them."""
    paths = [os.fsdecode(path) for path in os.pread(fd, _MAX_NOTES, 0).split(b"\0") if path]
    for path in paths:
        scratch.remove(path)
    return not any(os.path.lexists(path) for path in paths)
