"""The backend port, small on purpose: a backend builds a wall and hands back a byte stream.

What a wall or backend can do beyond ``Wall`` and ``Backend`` is in ``agentd.sandbox.abilities``: a
row there for each Protocol below that only some have.
"""

import socket
from collections.abc import Callable, Mapping
from typing import Protocol

from agentd.egress.asked import Asker
from agentd.egress.connections import ConnectionList
from agentd.model.availability import Availability
from agentd.model.egress import EgressBounds
from agentd.model.enforcement import Control, Enforcement
from agentd.model.isolation import IsolationLevel
from agentd.model.result import Cause
from agentd.model.secret import SecretValue
from agentd.model.spec import SandboxSpec


class Plan(Protocol):
    """A backend's plan for a spec: a frozen value, made without touching anything."""

    @property
    def spec(self) -> SandboxSpec: ...


class Wall(Protocol):
    """A built wall with a live agent behind it."""

    @property
    def enforcement(self) -> Enforcement:
        """Tells what is really in force."""

    @property
    def workspace(self) -> str:
        """Returns the workspace's path as commands inside see it."""

    @property
    def passes_descriptors(self) -> bool:
        """Tells whether SCM_RIGHTS reaches the agent (host and guest share a kernel)."""

    def open_stream(self) -> socket.socket:
        """Opens a fresh byte stream to the agent. Raises BackendLost when the wall is gone."""

    def counters(self) -> dict[str, int]:
        """Counts limit hits so far, seen from outside: ``oom``, ``pids``; {} where not counted."""

    def usage(self) -> dict[str, int]:
        """Returns ``memory_bytes``, ``peak_memory_bytes``, ``cpu_usec`` where known."""

    def alive(self) -> bool: ...

    def kill(self) -> None:
        """End everything behind the wall and free everything it held; idempotent, never raises."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the wall has ended; False when it has not within ``timeout`` seconds."""

    def save(self) -> dict[str, object]:
        """Returns enough to find and reap it after the host process died."""


class EndsEarly(Protocol):
    """A wall that has ended before all that it held is free: ``kill`` frees the rest."""

    def begin_kill(self) -> None:
        """Begins to end everything behind the wall; idempotent, never raises."""

    def end(self) -> None:
        """End it: nothing runs behind the wall when this returns, though the kernel may still be
        freeing what has; idempotent."""

    def first_process(self) -> int | None:
        """Returns a pidfd of the process with which all others behind the wall end, the caller's to
        close; None once it has ended, and where there is none."""


class TellsEnd(Protocol):
    """A wall that can end by itself, and say how."""

    def ending(self) -> Cause | None:
        """Return how it ended, also after ``kill``; None where that is unknown. Its message has the
        end of what it printed."""


class CopyOnWrite(Protocol):
    """A wall whose workspace is an overlay: its changes can be listed and applied."""

    def changes(self) -> tuple[str, ...]:
        """Returns one line a path, sorted: ``A new``, ``M changed``, ``D gone``; relative."""

    def apply(self) -> None:
        """Write the changes to the host's directory."""


class Pausable(Protocol):
    """A wall that can stand still: nothing behind it runs until it is resumed."""

    def pause(self) -> None:
        """Has it stand still. Raises SandboxError, and then it runs as before."""

    def resume(self) -> None:
        """Has it go on. Raises SandboxError, and then it stands still as before."""


class Snapshotable(Protocol):
    """A wall whose state can be written down, for ``Restores`` of its backend to build upon."""

    fidelity: str  # what is kept: "memory" is processes and files, "files" is files alone

    def snapshot(self, folder: str) -> None:
        """Write plain files beneath ``folder``: it exists, is empty and is for its owner alone.

        What runs is held up meanwhile and then goes on. Ends within a bound of its own, whatever
        the guest does, and at once when the wall is killed. Raises SandboxError.
        """


class Branches(Protocol):
    """A wall that can share its state with forks of it, in place of a snapshot's copy."""

    def branch(self, folder: str) -> None:
        """Does as ``snapshot``, for ``Restores`` of its backend to make forks of, while this one
        lives. The caller asks nothing of the agent meanwhile."""


class Networked(Protocol):
    """A wall whose network is restricted to rules, which can be changed while it lives."""

    def set_network(self, egress: tuple[str, ...], egress_bounds: EgressBounds) -> Control:
        """Let these rules, and the bounds of now, hold in place of those before, of open
        connections, too; what the wall says of its network from now on. Raises InvalidInput for a
        rule that is none, Refused for more than the bounds."""

    def connections(self, after: int) -> ConnectionList:
        """Return what is known of its connections, from a cursor on; 0 is the beginning."""


class Served(Protocol):
    """A wall whose network may be closed for good while it lives."""

    def is_served(self) -> bool:
        """Return whether what is dialled inside is still heard by somebody."""


class Asks(Protocol):
    """A wall whose rules may have connections wait until somebody says that they are allowed."""

    def set_asker(self, asker: Asker) -> None:
        """Have this called for each place that is asked about; before, all are refused."""

    def answer(
        self, host: str, port: int, allowed: bool, reason: str, seconds: float | None
    ) -> None:
        """Say whether connections there are allowed, as ``AskedPlaces.answer``."""

    def refuse_open(self, reason: str) -> None:
        """Refuse what is asked now: nobody will answer."""


class HoldsSecrets(Protocol):
    """A wall whose sandbox uses secrets that it never has: those of its spec, by their values."""

    def give_secrets(self, values: Mapping[str, SecretValue]) -> None:
        """Have these put where their placeholders are. Before, connections to their hosts are
        refused. Raises SandboxError."""

    def held_secrets(self) -> dict[str, SecretValue]:
        """Return what was given, for a fork."""


class HasCassette(Protocol):
    """A wall whose network is recorded, or replayed."""

    def count_for(self, owner: str) -> None:
        """Have what it records, and is played, count among what this owner's sandboxes may take.
        Raises SandboxError."""

    def cassette(self) -> bytes:
        """Return what was recorded until now, a file of ``model.cassette``. Raises Refused."""

    def play(self, path: str) -> None:
        """Answer from the cassette at ``path``, in place of one before, from its beginning. Raises
        InvalidInput for what is none, or has hosts that no rule has; Refused."""


class Leased(Wall, Protocol):
    """A wall that another process holds for us, for as long as its lease lasts."""

    id: str

    def renew(self, seconds: float | None) -> None:
        """Let its lease end so many seconds from now; never, for None. Raises SandboxError."""

    def tell_lease(self, seconds: float, env: Mapping[str, str] = ...) -> None:
        """Does as ``renew``, for one that has just been seen to live: nothing is waited for.
        ``env`` is kept for the next daemon. Raises BackendLost."""

    def end_if_idle(self, tell: Callable[[], object]) -> bool:
        """Ends it where no command's process is left, so that it takes no time; else returns False.
        ``tell`` is called before anything is killed. Never blocks."""


class Backend(Protocol):
    """Says as data what it is, and builds walls."""

    name: str
    level: IsolationLevel

    @property
    def images(self) -> bool:
        """Tells whether it boots the image that a spec names."""

    @property
    def abilities(self) -> frozenset[str]:
        """Names what its sandboxes can do, some of them at least, as ``sandbox.abilities`` does."""

    def requirements(self) -> tuple[str, ...]:
        """Return what it needs of the machine, in a few words each."""

    def probe(self) -> Availability: ...

    def plan(self, spec: SandboxSpec) -> Plan:
        """Touches nothing. Raises InvalidInput or Refused where the spec cannot be met."""

    def launch(self, plan: Plan) -> Wall:
        """Builds a wall. Raises SandboxError; leaves nothing behind when it does."""

    def close(self) -> None:
        """Free what is shared by this backend's walls; idempotent."""


class Restores(Protocol):
    """A backend that builds a wall from a snapshot; any number of walls from the same one."""

    def restore(self, plan: Plan, folder: str) -> Wall:
        """Builds a wall as ``launch`` does. Only reads ``folder``, which may be gone afterwards.

        The wall comes back with entropy, clock, machine-id and boot_id of its own.
        """
