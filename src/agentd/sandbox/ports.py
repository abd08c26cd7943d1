"""The backend port, small on purpose: a backend builds a wall and hands back a byte stream."""

import socket
from typing import Protocol, runtime_checkable

from agentd.model.availability import Availability
from agentd.model.cause import Cause
from agentd.model.enforcement import Enforcement
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import SandboxSpec


class Plan(Protocol):
    """What a backend will do for a spec: a frozen value, made without touching anything."""

    @property
    def spec(self) -> SandboxSpec: ...


class Wall(Protocol):
    """A built wall with a live agent behind it."""

    @property
    def enforcement(self) -> Enforcement:
        """What is really in force."""

    @property
    def workspace(self) -> str:
        """The workspace's path as commands inside see it."""

    @property
    def passes_descriptors(self) -> bool:
        """Whether SCM_RIGHTS reaches the agent (host and guest share a kernel)."""

    def open_stream(self) -> socket.socket:
        """A fresh byte stream to the agent. Raises BackendLost when the wall is gone."""

    def counters(self) -> dict[str, int]:
        """Limit hits so far, seen from outside: ``oom``, ``pids``; {} where not counted."""

    def usage(self) -> dict[str, int]:
        """``memory_bytes``, ``peak_memory_bytes``, ``cpu_usec`` where known."""

    def alive(self) -> bool: ...

    def kill(self) -> None:
        """End everything behind the wall and free everything it held; idempotent, never raises."""

    def wait(self, timeout: float | None = None) -> bool:
        """Until the wall has ended; False when it has not within ``timeout`` seconds."""

    def save(self) -> dict[str, object]:
        """Enough to find and reap it after the host process died."""


@runtime_checkable
class KillsAhead(Protocol):
    """A wall that ``kill`` waits for: it may begin before."""

    def begin_kill(self) -> None:
        """Everything behind the wall begins to end; idempotent, never raises."""


@runtime_checkable
class EndsFirst(Protocol):
    """A wall that need not be kept waiting for: ``kill`` frees what ``end`` leaves."""

    def end(self) -> None:
        """Nothing runs behind the wall any more when it returns, though the kernel may still be
        freeing what has; idempotent."""


@runtime_checkable
class EndsWithProcess(Protocol):
    """A wall behind which nothing runs any more once its first process has ended."""

    def first_process(self) -> int:
        """A pidfd of that, the caller's to close. Raises ProcessLookupError once it is ended."""


@runtime_checkable
class TellsEnd(Protocol):
    """A wall that can end by itself, and say how."""

    def ending(self) -> Cause | None:
        """Once it has ended, also after ``kill``; None where nobody knows. Its message has the end
        of what it printed."""


@runtime_checkable
class CopyOnWrite(Protocol):
    """A wall whose workspace is an overlay: its changes can be listed and applied."""

    def changes(self) -> tuple[str, ...]:
        """One line a path, sorted: ``A new``, ``M changed``, ``D gone``; relative."""

    def apply(self) -> None:
        """Write the changes to the host's directory."""


@runtime_checkable
class Pausable(Protocol):
    """A wall that can stand still: nothing behind it runs until it is resumed."""

    def pause(self) -> None:
        """Raises SandboxError, and then it runs as before."""

    def resume(self) -> None:
        """Raises SandboxError, and then it stands still as before."""


@runtime_checkable
class Snapshots(Protocol):
    """A wall whose state can be written down, for ``Restores`` of its backend to build upon."""

    fidelity: str  # what is kept: "memory" is processes and files, "files" is files alone

    def snapshot(self, folder: str) -> None:
        """Write plain files beneath ``folder``: it exists, is empty and is for its owner alone.

        What runs is held up meanwhile and then goes on. Ends within a bound of its own, whatever
        the guest does, and at once when the wall is killed. Raises SandboxError.
        """


class Backend(Protocol):
    name: str
    level: IsolationLevel

    def requirements(self) -> tuple[str, ...]:
        """What it needs of the machine, in a few words each."""

    def probe(self) -> Availability: ...

    def plan(self, spec: SandboxSpec) -> Plan:
        """Pure. Raises InvalidInput or Refused where the spec cannot be met."""

    def launch(self, plan: Plan) -> Wall:
        """Raises SandboxError; leaves nothing behind when it does."""

    def close(self) -> None:
        """Free what is shared by this backend's walls; idempotent."""


@runtime_checkable
class Restores(Protocol):
    """A backend that builds a wall from a snapshot; any number of walls from the same one."""

    def restore(self, plan: Plan, folder: str) -> Wall:
        """As ``launch``. ``folder`` is only read, and may be gone once this has returned.

        The wall comes back with entropy, clock, machine-id and boot_id of its own.
        """
