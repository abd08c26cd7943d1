"""One sandbox, as the manager and its callers hold it."""

import contextlib
import os
import threading
import time
from base64 import b32encode
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from agentd.model.enforcement import Control, Enforcement
from agentd.model.errors import (
    AgentdError,
    BackendLost,
    Conflict,
    Refused,
    SandboxEnded,
    SandboxError,
)
from agentd.model.mount import MountMode
from agentd.model.result import SandboxInfo
from agentd.model.units import counted
from agentd.sandbox import ending
from agentd.sandbox.abilities import CHANGES, SNAPSHOT, Ability, incapable, lacking
from agentd.sandbox.choose import Choice
from agentd.sandbox.lifecycle import State
from agentd.sandbox.ports import CopyOnWrite, Snapshotable, Wall
from agentd.transport.guest import Guest

if TYPE_CHECKING:
    from agentd.model.isolation import IsolationLevel
    from agentd.model.result import Cause
    from agentd.model.spec import SandboxSpec

P = TypeVar("P")


class BegunCommand(NamedTuple):
    """A command that is begun before the sandbox is anybody's; the agent knows it by its ``id``."""

    id: str
    argv: tuple[str, ...]
    began: float


class SandboxHandle:
    """A sandbox. ``wall`` and ``guest`` are there from READY until it is destroyed."""

    def __init__(self, choice: Choice, source: str | None = None) -> None:
        """``source``: the state of a snapshot that it is built from."""
        # 60 random bits: an id cannot be guessed, nor met twice.
        self.id = "sbx-" + b32encode(os.urandom(8)).decode().lower()[:12]
        self.spec: SandboxSpec = choice.plan.spec
        self.backend: str = choice.backend.name
        self.level: IsolationLevel = choice.backend.level
        self.state = State.CREATED
        self.unreported_ms = 0.0  # set-up time that no result has counted yet
        self.counters: dict[str, int] = {}  # the wall's, when last looked at
        #: The cursor of its connections when last looked at; None: as they are by then.
        self.network_seen: int | None = 0
        self.commands = 0  # that run; guarded by ``lock``
        self.why: Cause | None = None  # it is ended, said by who ends it, before it does
        self.begun: BegunCommand | None = None  # by its template
        self.choice = choice
        self.source = source
        self.operations = 0  # of a daemon, that are under way; guarded by ``lock``
        self.used = time.monotonic()  # when anything in it was last asked for
        #: Called where something is asked of it while it is paused; it may have it go on.
        self.on_use: Callable[[], None] | None = None
        self._after_pause: list[Callable[[], None]] = []  # guarded by ``lock``
        self.lock = threading.RLock()  # held while the state changes
        self.turn = threading.Lock()  # held by a pause, a resume or a snapshot
        self._wall: Wall | None = None
        self._guest: Guest | None = None

    @property
    def wall(self) -> Wall:
        if self._wall is None:
            raise self.truly(BackendLost(f"sandbox {self.id} is {self.state}"))
        return self._wall

    def truly(self, error: AgentdError) -> AgentdError:
        """Return ``error``, or what it comes of where the sandbox has ended under what was done
        there: by somebody, or because its memory ran out."""
        if not isinstance(error, SandboxError) or isinstance(error, SandboxEnded):
            return error
        why = self.ended_for() if isinstance(error, BackendLost) else self.why
        return error if why is None else ended(why)

    def ended_for(self, seconds: float = ending.DEATH_SECONDS) -> "Cause | None":
        """Return why it has ended, unless the machine is to blame, or it lives. Waits so long for
        a wall that dies."""
        why = self.why
        if why is None and self._wall is not None and self._wall.wait(seconds):
            why = ending.of_wall(self._wall, self.counters, gone=True)
        return None if why is None or why.infrastructure else why

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Let what the block breaks with be what it comes of, as ``truly`` does."""
        try:
            yield
        except SandboxError as error:
            told = self.truly(error)
            if told is error:
                raise
            raise told from error

    @property
    def guest(self) -> Guest:
        """Returns the agent; waits while a snapshot is taken: the wall may have no streams then."""
        self.rouse()
        return self._guest_now()

    def unused(self) -> Guest | None:
        """Returns the guest, for what is no use of it; None where it cannot be asked now."""
        return self._guest if self.state is State.READY else None

    def tell_lease(self, milliseconds: int | None, *, still: bool = False) -> None:
        """Tell the agent its own lease, none for None, and whether the time of commands is to stand
        still. One of protocol v1 has neither; one that is paused is told later."""
        guest = self.unused()
        if guest is not None:
            guest.own_time.stand_still(still)
            with contextlib.suppress(AgentdError):
                guest.call("sys.lease", ms=milliseconds, **({"still": True} if still else {}))

    def keep(self, *, wall: Wall | None = None, guest: Guest | None = None) -> bool:
        """Take what was made for it. False where it was ended meanwhile: nobody holds the lock as
        that is made, and there was none to end."""
        with self.lock:
            starts = self.state is State.STARTING
            if starts and wall is not None:
                self._wall = wall
            if starts and guest is not None:
                self._guest = guest
        return starts

    def rouse(self) -> None:
        """Notes a use of it: one that rests for being idle goes on. Raises as a resume does."""
        if self.on_use is None:
            self.used = time.monotonic()
            return
        with self.lock:  # against a look at whether it is idle
            self.used = time.monotonic()
            paused = self.state is State.PAUSED
        if paused:
            self.on_use()

    def is_idle(self, seconds: float) -> bool:
        """Return whether nothing goes on in it, and nothing was asked of it for so long."""
        busy = self.commands or self.operations
        return not busy and time.monotonic() - self.used >= seconds

    def _guest_now(self) -> Guest:
        if self.state is State.SNAPSHOTTING:
            with self.turn:
                pass
        if self._guest is None:
            lost = f"sandbox {self.id} is {self.state}"
            raise self.truly(BackendLost(lost, remediation="create a new sandbox"))
        if self.state is State.PAUSED:
            raise Conflict(f"sandbox {self.id} is paused", remediation="resume it first")
        return self._guest

    @property
    def enforcement(self) -> Enforcement:
        """Also which template it was made of: who reads what held is to know what it was."""
        held = self.wall.enforcement
        if self.spec.template:
            held = {**held, "template": Control(self.spec.template, True)}
        if self.spec.locked:
            held = {**held, "packages": _packages(self.spec)}
        return held

    @property
    def info(self) -> SandboxInfo:
        return SandboxInfo(self.id, self.backend, self.level.label)

    def if_paused(self, then: Callable[[], None]) -> bool:
        """Return whether it is paused. Where it is, ``then`` is called when it has gone on, or has
        ended, by whoever did that."""
        with self.lock:
            paused = self.state is State.PAUSED
            if paused:
                self._after_pause.append(then)
        return paused

    def pause_over(self) -> None:
        """Call what waits for the end of a pause, unless it is paused."""
        with self.lock:
            if self.state is State.PAUSED:
                return
            waiting, self._after_pause = self._after_pause, []
        for then in waiting:
            then()

    def begin_command(self, *, paused: bool = False) -> Guest:
        """Returns the guest, for a command that counts as running until ``end_command``. Raises
        Conflict where it is paused, unless that one runs already: ``paused``."""
        while True:
            self.rouse()
            with self.lock:
                if self.state is not State.SNAPSHOTTING:
                    standing = paused and self.state is State.PAUSED
                    guest = self._guest if standing and self._guest else self._guest_now()
                    self.commands += 1
                    return guest
            with self.turn:
                pass

    def end_command(self) -> None:
        with self.lock:
            self.commands -= 1
            self.used = time.monotonic()

    def begin_operation(self) -> None:
        """Counts it as not idle until ``end_operation``."""
        with self.lock:
            self.operations += 1

    def end_operation(self) -> None:
        with self.lock:
            self.operations -= 1
            self.used = time.monotonic()

    def check_idle(self) -> None:
        """Raises Conflict while commands run: a snapshot would end them here and there.

        The streams to a virtual machine do not survive one, and with them go attached commands.
        """
        if self.commands:
            raise Conflict(
                f"{counted(self.commands, 'command runs', 'commands run')} in sandbox {self.id}",
                remediation="wait for them, or let the shell start them in the background",
            )

    def able(self, ability: Ability[P], what: str) -> P:
        """Return its wall, which has ``ability``. Raises Unsupported: which backends have it."""
        wall = ability.of(self.wall)
        if wall is None:
            why = lacking(self.wall).get(ability.name, "")
            raise incapable(self.backend, ability, what, why)
        return wall

    def snapshots(self, what: str) -> Snapshotable:
        """Return its wall, where a snapshot can be taken of it. Raises Refused."""
        wall = self.able(SNAPSHOT, what)
        # Packages never change: a copy has the same. An image would be without them.
        kept = wall.fidelity == "files" and what in ("snapshot", "fork")
        if any(not (kept and mount.packages) for mount in self.spec.mounts):
            raise self._mounted(what)
        return wall

    def _mounted(self, what: str) -> Refused:
        """A folder that changes below what is kept would be another one than the sandbox saw."""
        mounts = self.spec.mounts
        kinds = "volumes" if all(mount.volume for mount in mounts) else "host directories"
        if all(mount.packages for mount in mounts):
            kinds = "packages"
        ways = ["create it without them, and write the files into it (agentd cp, files.upload)"]
        if any(mount.volume for mount in mounts):
            ways.append("agentd volume snapshot keeps a volume")
        if any(mount.mode is MountMode.COW for mount in mounts):
            ways.append("apply writes the changes of a cow workspace to its folder")
        return Refused(
            f"cannot {what} sandbox {self.id}: {kinds} are mounted in it",
            cause=", ".join(f"{mount.named} at {mount.target}" for mount in mounts),
            remediation="; ".join(ways),
        )

    def overlay(self) -> CopyOnWrite:
        """Return its wall, where that has a copy-on-write workspace. Raises Refused."""
        wall = CHANGES.of(self.wall)
        if wall is None:
            raise Refused(
                f"sandbox {self.id} has no copy-on-write workspace",
                remediation='create it with workspace="PATH:cow"',
            )
        return wall


def ended(why: "Cause", message: str = "", cause: str = "") -> SandboxEnded:
    """Return the error of what a sandbox's end cut off; ``why``: what ends its commands."""
    fix = why.remediation or "create a new sandbox"
    error = SandboxEnded(message or why.message, cause=cause, remediation=fix)
    error.code = str(why.code)
    return error


def _packages(spec: "SandboxSpec") -> Control:
    """Return what is said of them: what was asked for, and each that this became, by its digest."""
    return Control(",".join(spec.packages), True, "; ".join(map(str, spec.locked)))
