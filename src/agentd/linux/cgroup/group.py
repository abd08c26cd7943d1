"""What groups of both versions share: membership, killing and removal."""

import contextlib
import errno
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

from agentd.linux.cgroup import files

_KILL_SECONDS = 5.0
_REMOVE_SECONDS = 10.0
_POLL_SECONDS = 0.001
_PIDFDS_AT_ONCE = 64


class Group(ABC):
    """A sandbox's group. ``controllers`` are those whose limit was asked for and is in force."""

    #: The file for moving oneself in.
    _DOOR = "cgroup.procs"

    def __init__(
        self,
        name: str,
        directories: Sequence[str],
        controllers: frozenset[str],
        removed: Callable[[], None],
    ) -> None:
        self.name = name
        self.controllers = controllers
        self._directories = tuple(directories)
        self._removed = removed

    def attach(self, pid: int) -> None:
        """Move a process in, with what it forks from now on. Raises ProcessLookupError."""
        for directory in self._directories:
            files.write(directory, "cgroup.procs", pid)

    def doors(self) -> list[int]:
        """Opens descriptors, the caller's to close: who writes ``0`` to all of them is moved in.

        Whoever holds them needs no right of its own: the kernel looks at who opened them.
        """
        flags = os.O_WRONLY | os.O_CLOEXEC
        fds: list[int] = []
        try:
            for directory in self._directories:
                fds.append(os.open(f"{directory}/{self._DOOR}", flags))
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    @abstractmethod
    def where(self) -> dict[str, object]:
        """Tells ``version`` and ``directories`` by controller, for ``reopen`` elsewhere."""

    def hierarchies(self) -> list[str]:
        """Returns the names of those in which it is: "unified", or controllers of version 1."""
        places = self.where()["directories"]
        found = places.items() if isinstance(places, dict) else ()
        return sorted(name for name, directory in found if directory in self._directories)

    @abstractmethod
    def sockets_apart(self, memory: int) -> int | None:
        """Returns the bytes that sockets may hold beside a limit of ``memory``; 0 where they count
        as memory, None where nothing counts them."""

    @abstractmethod
    def counters(self) -> dict[str, int]:
        """Counts limit hits: ``oom`` processes killed, ``pids`` forks refused; those known."""

    @abstractmethod
    def usage(self) -> dict[str, int]:
        """Returns ``memory_bytes``, ``peak_memory_bytes``, ``cpu_usec``: those known."""

    @abstractmethod
    def tasks(self) -> int | None:
        """Counts the threads in it and in groups nested in it, with those that ended and are not
        reaped; None where they are not counted."""

    @abstractmethod
    def limit_memory(self, limit: int) -> None:
        """Sets a new limit in bytes, swap included, in place of the one there is. Raises OSError.

        One below what it holds is not set: version 2 would end a process for it.
        """

    @abstractmethod
    def memory_room(self) -> int | None:
        """Returns the bytes that the groups around it leave; None where they set no limit."""

    @abstractmethod
    def without_freezer(self) -> str:
        """Return why it cannot be frozen; empty where it can."""

    @abstractmethod
    def freeze(self) -> None:
        """Stop every process until ``thaw``. Raises OSError where that cannot be had."""

    @abstractmethod
    def thaw(self) -> None: ...

    @contextlib.contextmanager
    def _thawed_unless_done(self) -> Iterator[None]:
        """Within it members are frozen; where that fails half-way they go on."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                self.thaw()
            raise

    def kill(self) -> bool:
        """Kills every member, nested groups too; returns False when some were left after 5 s."""
        deadline = time.monotonic() + _KILL_SECONDS
        self._start_kill()
        while self._kill_members():
            self.thaw_if_frozen()
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def remove(self) -> None:
        """Kill what is left and remove the group; idempotent.

        Raises OSError (EBUSY) when a member could not be killed.
        """
        deadline = time.monotonic() + _REMOVE_SECONDS
        while not self._try_remove():
            self.kill()
            if time.monotonic() >= deadline:
                raise OSError(
                    errno.EBUSY,
                    "cgroup still has processes, end them by hand",
                    self._directories[0],
                )
            time.sleep(_POLL_SECONDS)
        self._removed()

    def pids(self) -> set[int]:
        """Returns the members that this pid namespace can name, nested groups included."""
        return {
            int(line)
            for path in self._all_directories()
            for line in files.read(path, "cgroup.procs").split()
        } - {0}

    @abstractmethod
    def _start_kill(self) -> None:
        """Kill in one go, or keep members from forking, where the kernel can."""

    @abstractmethod
    def thaw_if_frozen(self) -> None:
        """Thaws it: a frozen member of a v1 freezer dies only then."""

    def _all_directories(self) -> Iterator[str]:
        for directory in self._directories:
            yield from files.deepest_first(directory)

    def _kill_members(self) -> bool:
        """Signal the present members; whether there were any."""
        members = sorted(self.pids())
        for start in range(0, len(members), _PIDFDS_AT_ONCE):
            self._kill_pinned(members[start : start + _PIDFDS_AT_ONCE])
        return bool(members)

    def _kill_pinned(self, members: Sequence[int]) -> None:
        """A number may pass to a stranger at any time: pin it, then see that it is a member."""
        with contextlib.ExitStack() as opened:
            pinned = {}
            for pid in members:
                pidfd = _pin(pid)
                if pidfd is not None:
                    pinned[pid] = pidfd
                    opened.callback(os.close, pidfd)
            still = self.pids()
            for pid, pidfd in pinned.items():
                if pid in still:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _try_remove(self) -> bool:
        for directory in self._directories:
            try:
                files.remove_dir(directory)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise
                if not _remove_tree(directory):
                    return False
        return True


def _pin(pid: int) -> int | None:
    """A pidfd; None where the process has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        # Linux 6.12 says so of one that is reaped between its two looks at the number.
        if error.errno == errno.EINVAL:
            return None
        raise


def _remove_tree(directory: str) -> bool:
    """A container runtime nests groups of its own: deepest first."""
    for path in files.deepest_first(directory):
        try:
            files.remove_dir(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise
    return True
