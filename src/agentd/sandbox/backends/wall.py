"""A running sandbox of the shared kernel, seen from the host."""

import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterable, Sequence

from agentd.linux.cgroup import CountedGroup, Group
from agentd.linux.pidfd import Pidfd
from agentd.model.enforcement import Enforcement
from agentd.model.errors import BackendLost, SandboxError
from agentd.sandbox.backends.child import unsent
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.volume_lease import VolumeLease


class ProcessWall:
    """A wall around one process tree, known by its first process's pidfd.

    ``listener`` carries fresh connections to the agent: one message with one descriptor each.
    """

    passes_descriptors = True

    def __init__(
        self,
        *,
        pid: int,
        pidfd: int,
        listener: socket.socket,
        group: Group | None,
        enforcement: Enforcement,
        workspace: str = "/workspace",
        without_group: str = "",
        block: Block | None = None,
        user: tuple[int, int] | None = None,
        workdir: str | None = None,
        before_end: Sequence[Callable[[], object]] = (),
        on_end: Sequence[Callable[[], None]] = (),
    ) -> None:
        self.id = str(pid)
        self.pid = pid
        self.enforcement = enforcement
        self.workspace = workspace
        #: Where commands begin, if not in the workspace.
        self.workdir = workdir
        self._first = Pidfd(pidfd)
        self._listener = listener
        self._group = group
        self._block = block
        #: Uid and gid that its commands have outside; None where they are the caller's.
        self.pipe_owner = user if block is None else (block.id, block.id)
        self._before_end = before_end
        self._on_end = on_end
        self._lock = threading.Lock()
        self._first_killed = False  # the first process was sent SIGKILL
        self._empty = False  # no process is left
        self._gone = False  # and that was seen
        self._ended = False  # and nothing else
        self._paused = False
        unable = without_group if group is None else group.without_freezer()
        #: Abilities that it has not, though it has their methods, and why.
        self.lacks = {"pause": unable or "it has no cgroup"} if group is None or unable else {}

    def attach_leases(self, leases: Iterable[VolumeLease | None]) -> None:
        """Have the volumes in it given back once it has ended."""
        self._on_end = (*self._on_end, *(lease.close for lease in leases if lease is not None))

    def open_stream(self) -> socket.socket:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:  # no descriptor is left
            raise unsent(f"sandbox {self.id}", error) from error
        try:
            socket.send_fds(self._listener, [b"c"], [theirs.fileno()])
        except OSError as error:
            ours.close()
            if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):
                raise BackendLost(f"sandbox {self.id} is gone", cause=str(error)) from error
            raise unsent(f"sandbox {self.id}", error) from error
        finally:
            theirs.close()
        return ours

    def counters(self) -> dict[str, int]:
        return self._group.counters() if self._group and not self._ended else {}

    def usage(self) -> dict[str, int]:
        return self._group.usage() if self._group and not self._ended else {}

    @property
    def counted(self) -> dict[str, object] | None:
        """Where its counters can be read by another process too; see ``cgroup.reopen``."""
        return self._group.where() if self._group else None

    def alive(self) -> bool:
        return not self.wait(0)

    def wait(self, timeout: float | None = None) -> bool:
        return self._first.wait(timeout)

    def pause(self) -> None:
        self._freeze_or_thaw(paused=True)

    def resume(self) -> None:
        self._freeze_or_thaw(paused=False)

    def kill(self) -> None:
        self._empty_it()
        with self._lock:
            if self._ended:
                return
            self._ended = True
            # The last comes first; and all of it, whatever one of them raises. Where no descriptor
            # was left there are two then, to look into its group.
            with contextlib.ExitStack() as rest:
                if self._block is not None:
                    rest.callback(self._block.release, self._gone)
                for callback in reversed(self._on_end):
                    rest.callback(callback)
                if self._group is not None:
                    rest.callback(self._group.remove)
                rest.callback(self._listener.close)
                rest.callback(self._first.close)

    def save(self) -> dict[str, object]:
        return {"pid": self.pid, "group": self._group.name if self._group else None}

    def _freeze_or_thaw(self, *, paused: bool) -> None:
        with self._lock:
            if self._empty or self._group is None:
                raise BackendLost(f"sandbox {self.id} is gone")
            try:
                if paused:
                    self._group.freeze()
                else:
                    self._group.thaw()
            except OSError as error:
                word = "paused" if paused else "resumed"
                raise SandboxError(
                    f"sandbox {self.id} could not be {word}",
                    cause=str(error),
                    remediation="try again; agentd kill ends it in any state",
                ) from error
            self._paused = paused

    def _empty_it(self) -> None:
        with self._lock:
            if self._empty:
                return
            if self._paused and self._group is not None:
                self._kill_frozen(self._group)
            seen = [callback() for callback in self._before_end]
            self._first.kill()
            self._first_killed = True
            self._gone = self.wait(10.0) and False not in seen
            self._empty = True

    def _kill_frozen(self, group: Group) -> None:
        """What version 1 has frozen dies only once it is thawed, after it was sent SIGKILL."""
        self._listener.close()  # of no use any more, and one descriptor is what a look takes
        try:
            group.kill()
        except OSError:  # more are not to be had: the others end with the first
            with contextlib.suppress(OSError):
                self._first.kill()
            with contextlib.suppress(OSError):
                group.thaw()


class NamespaceWall(ProcessWall):
    """A wall whose first process takes its whole pid namespace with it."""

    def begin_kill(self) -> None:
        if not self._lock.acquire(blocking=False):
            return  # somebody ends it already
        try:
            if not self._empty:
                with contextlib.suppress(OSError):  # ``kill`` says so
                    self._first.kill()
                    self._first_killed = True
        finally:
            self._lock.release()

    def end(self) -> None:
        """Does half of ``kill``: nothing runs in it any more, and it holds what it held."""
        self.begin_kill()
        if not (self._first_killed and only_agent_left(self._group)):
            self._empty_it()

    def first_process(self) -> int | None:
        try:
            return self._first.duplicate()
        except ProcessLookupError:
            return None


def only_agent_left(group: CountedGroup | None) -> bool:
    """Return whether no command's process is left in a sandbox.

    With SIGKILL its agent starts no other (copy_process() in the kernel's fork.c fails with a fatal
    signal) and runs no more itself; to free its memory takes the kernel a while longer.
    """
    tasks = None if group is None else group.tasks()
    return tasks is not None and tasks <= 1
