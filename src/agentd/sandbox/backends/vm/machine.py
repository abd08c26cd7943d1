"""What the machines of every monitor have in common, seen from the host."""

import contextlib
import signal
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Generic, TypeVar

from agentd.linux.cgroup import Group
from agentd.linux.waiting import is_ready
from agentd.model.enforcement import Enforcement
from agentd.model.errors import AgentdError, SandboxError
from agentd.model.result import Cause
from agentd.sandbox.backends.linux.network import SandboxNetwork, give_abilities
from agentd.sandbox.backends.vm.ceiling import Ceiling
from agentd.sandbox.backends.vm.ending import Ending, safe_log, tail
from agentd.sandbox.backends.vm.handshake import tell
from agentd.sandbox.volume_lease import VolumeLease

# The first stream waits for the guest's driver; a guest may be slow, as eight beside each other.
STREAM_SECONDS = 30.0


class MonitorProcess(ABC):
    """The monitor's process of one machine; ``end`` must be called."""

    def __init__(self, group: Group | None) -> None:
        self.pidfd = -1
        self._group = group
        self._ended = False
        self._ending: Ending | None = None
        self._looking = threading.Lock()  # one question at a time, and none of what is forgotten

    def ending(self) -> Ending:
        """Return how it ended, once it has; also after ``end``."""
        with self._looking:
            return self._ending or self._seen_ending()

    @abstractmethod
    def _seen_ending(self) -> Ending:
        """Ask who has seen it. ``_looking`` is held."""

    @abstractmethod
    def end(self) -> None:
        """Kill it and free all that it held; idempotent, never raises."""

    @abstractmethod
    def _log(self) -> str:
        """The end of what it printed; empty where nobody can tell."""

    def alive(self) -> bool:
        return not self.wait(0)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; False when it has not within ``timeout`` seconds."""
        if self._ended or self.pidfd < 0:
            return True
        return is_ready(self.pidfd, timeout)

    def why(self) -> str:
        """Say in a few words how it ended."""
        return self.ending().text

    def log_tail(self) -> str:
        """Returns the end of what it printed, on one line."""
        return tail(safe_log(self._log()))

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def _oom(self) -> bool:
        with contextlib.suppress(OSError):
            return self._group is not None and self._group.counters().get("oom", 0) > 0
        return False


P = TypeVar("P", bound=MonitorProcess)


class MachineWall(ABC, Generic[P]):
    """A running machine: ``Pausable`` and ``Snapshotable``. Thread-safe."""

    passes_descriptors = False
    workspace = "/workspace"
    fidelity = "memory"

    def __init__(
        self,
        process: P,
        group: Group | None,
        enforcement: Enforcement,
        *,
        pid: int,
        memory: int,
        ceiling: int,
    ) -> None:
        """``memory`` is the machine's, ``ceiling`` the limit of its group, both in bytes."""
        self.enforcement = enforcement
        self.pid = pid
        self._process = process
        self._group = group
        self._memory = memory
        self._ceiling = Ceiling(group, ceiling)
        self._changing = threading.RLock()  # of its state: one pause or snapshot at a time
        self._killing = threading.Lock()
        self._paused = False
        self._gone = False
        self._leases: tuple[VolumeLease, ...] = ()
        self._network: SandboxNetwork | None = None
        #: Abilities that it has not, though its backend has them, and why.
        self.lacks: dict[str, str] = {}

    def attach_leases(self, leases: Iterable[VolumeLease | None]) -> None:
        """Have the volumes in it given back once it has ended."""
        self._leases = tuple(lease for lease in leases if lease is not None)

    def attach_network(self, network: SandboxNetwork | None) -> None:
        """Takes ownership. None where its network is not restricted to rules."""
        self._network = network
        give_abilities(self, network)

    @property
    def _pidfd(self) -> int:
        return self._process.pidfd

    @abstractmethod
    def open_stream(self) -> socket.socket: ...

    @abstractmethod
    def _own_stream(self) -> socket.socket:
        """A stream to the agent for what agentd itself tells it."""

    @abstractmethod
    def _check_snapshot(self, folder: str) -> None:
        """Raises SandboxError where there can be none, or no room for it."""

    @abstractmethod
    def _write_snapshot(self, folder: str) -> None: ...

    def counters(self) -> dict[str, int]:
        return self._group.counters() if self._group is not None and not self._gone else {}

    def usage(self) -> dict[str, int]:
        return self._group.usage() if self._group is not None and not self._gone else {}

    def alive(self) -> bool:
        return not self.wait(0)

    def wait(self, timeout: float | None = None) -> bool:
        return self._process.wait(timeout)

    def ending(self) -> Cause:
        return self._process.ending().cause()

    def kill(self) -> None:
        with self._killing:
            if self._gone:
                return
            self._gone = True
            # The last comes first; and all of it, whatever one of them raises.
            with contextlib.ExitStack() as rest:
                rest.callback(self._remove_group)
                for lease in self._leases:
                    rest.callback(lease.close)
                if self._network is not None:
                    rest.callback(self._network.close)
                rest.callback(self._process.end)

    def _remove_group(self) -> None:
        if self._group is not None:
            with contextlib.suppress(OSError):  # reaped by name later
                self._group.remove()

    def snapshot(self, folder: str) -> None:
        """Stop what runs in the guest before, and let it go on after: a copy must not run it
        before it has random numbers, a clock and an identity of its own.
        """
        with self._changing:
            if self._paused:
                raise SandboxError(
                    "a paused virtual machine cannot be snapshotted", remediation="resume it first"
                )
            self._check_snapshot(folder)
            try:
                self._tell("sys.freeze")
                with self._ceiling.raised(self._memory):
                    self._write_snapshot(folder)
            except BaseException:
                # Also what stands still though its answer was lost; it is not what there is to say.
                with contextlib.suppress(AgentdError):
                    self._tell("sys.clock", "sys.thaw")
                raise
            self._tell("sys.clock", "sys.thaw")

    def _tell(self, *operations: str) -> None:
        """Operations of the agent's, over a stream of their own. Raises SandboxError."""
        tell(self._own_stream(), operations, STREAM_SECONDS)

    def _check_running(self) -> None:
        if self._paused:
            raise SandboxError("the virtual machine is paused", remediation="resume it first")
