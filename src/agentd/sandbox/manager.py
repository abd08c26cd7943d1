"""Makes sandboxes and ends them: the one place where the lifecycle's instructions become I/O."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from agentd.model.errors import Refused, SandboxError
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import SandboxSpec
from agentd.sandbox import backends, lifecycle
from agentd.sandbox.abilities import BRANCH, ENDS_EARLY, PAUSE, fidelity
from agentd.sandbox.backends.others import of_others
from agentd.sandbox.choose import Choice, choose
from agentd.sandbox.finisher import Finisher
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.launching import begin, launch, restorer
from agentd.sandbox.lifecycle import Do, LifecycleEvent, State
from agentd.sandbox.ports import Backend, Wall
from agentd.transport.guest import Guest

if TYPE_CHECKING:
    from agentd.sandbox.shelf import Shelf
    from agentd.sandbox.snapshots import Snapshot

__all__ = ["Manager", "SandboxHandle"]

MAX_SANDBOXES = 4096
# What did not happen when an operation on a living sandbox fails.
_FAILED = {
    LifecycleEvent.PAUSE: LifecycleEvent.NOT_PAUSED,
    LifecycleEvent.RESUME: LifecycleEvent.NOT_RESUMED,
    LifecycleEvent.SNAPSHOT: LifecycleEvent.SNAPSHOT_OVER,
}


def connect(wall: Wall, elsewhere: Callable[[str], str] | None = None) -> Guest:
    """Returns what talks to a wall's agent. ``elsewhere`` says how a program gets into the sandbox
    that the caller has, and it not."""
    return Guest(
        wall.open_stream,
        passes_descriptors=wall.passes_descriptors,
        # What other people's walls need not have.
        pipe_owner=getattr(wall, "pipe_owner", None),
        pipe_bytes=getattr(wall, "pipe_bytes", 0),
        elsewhere=elsewhere if wall.passes_descriptors else None,
    )


class Manager:
    """Thread-safe. Backends are made once each and shared by their sandboxes."""

    def __init__(
        self,
        load: Callable[[str], Backend] = backends.load,
        connect: Callable[[Wall], Guest] = connect,
        made: Mapping[str, Backend] | None = None,
        allowed: Callable[[], Collection[str]] = tuple,
        least: Callable[[], IsolationLevel] = lambda: IsolationLevel.NONE,
    ) -> None:
        """``made``: backends that exist already; they are ours to close from now on. ``allowed``
        names those that may be used; empty: all. ``least`` is what no sandbox here is below."""
        self._allowed = allowed
        self._least = least
        self._load = load
        self._connect = connect
        self._lock = threading.Lock()
        self._backends: dict[str, Backend] = dict(made or {})
        self._handles: dict[str, SandboxHandle] = {}
        self._shelf: Shelf | None = None
        self._finisher = Finisher()
        self._owner = os.getpid()

    def backend(self, name: str) -> Backend:
        """Returns the shared backend of that name. Raises InvalidInput for an unknown one."""
        with self._lock:
            if name not in self._backends:
                self._backends[name] = self._load(name)
            return self._backends[name]

    def create(self, spec: SandboxSpec) -> SandboxHandle:
        """Makes a sandbox, and returns it once it is ready.

        Raises Unavailable, Refused and InvalidInput before anything was made, SandboxError when it
        could not be built; nothing is left behind then.
        """
        started = time.monotonic()
        choice = choose(spec, self.backend, self._allowed(), self._least())
        return self._bring_up(SandboxHandle(choice), started)

    def wall_of(self, spec: SandboxSpec) -> Backend:
        """Return what would build a sandbox of ``spec``. Raises as ``create``."""
        return choose(spec, self.backend, self._allowed(), self._least()).backend

    def adopt(self, id_: str, choice: Choice, wall: Wall, *, paused: bool) -> SandboxHandle:
        """Takes over a sandbox that another process made and that outlived it, under its old id."""
        handle = SandboxHandle(choice)
        handle.id = id_
        handle.network_seen = None
        handle.counters = dict(wall.counters())  # what it met before ends nothing from now on
        handle._wall = wall
        handle._guest = self._connected(handle, wall)
        handle.state = State.PAUSED if paused else State.READY
        self._register(handle)
        return handle

    def restore(self, spec: SandboxSpec, snapshot: "Snapshot") -> SandboxHandle:
        """Create a sandbox from a snapshot, once that proves whole.

        Raises Refused where ``spec`` asks for another machine than the one that was kept.
        """
        from agentd.sandbox import snapshots  # late here and below: they load what few need

        started = time.monotonic()
        snapshots.check_spec(spec, snapshot.spec)
        if spec.backend not in (None, snapshot.backend):
            raise Refused(
                f"snapshot {snapshot.id} is of backend {snapshot.backend}, not {spec.backend}",
                remediation=f"drop --backend {spec.backend}",
            )
        choice = self._restorable(msgspec.structs.replace(spec, backend=snapshot.backend))
        snapshots.verify(snapshot)
        return self._bring_up(SandboxHandle(choice, snapshot.state), started)

    def fork(self, handle: SandboxHandle, specs: Sequence[SandboxSpec]) -> list[SandboxHandle]:
        """Makes a copy of it as it is now for each spec, or none at all; it goes on as it was.

        The caller holds their number to ``MAX_FORKS``.
        """
        from shutil import rmtree

        from agentd.sandbox.snapshots import check_spec

        handle.snapshots("fork")
        restorer(handle.choice.backend, "fork")
        for spec in specs:
            check_spec(spec, handle.spec)
        folder = self._own_shelf().new_folder()
        made: list[SandboxHandle] = []
        try:
            self._operate(handle, LifecycleEvent.SNAPSHOT, folder, forks=True)
            for spec in specs:
                started = time.monotonic()
                choice = self._restorable(msgspec.structs.replace(spec, backend=handle.backend))
                made.append(self._bring_up(SandboxHandle(choice, folder), started))
        except BaseException:
            for copy in made:
                self.destroy(copy)
            raise
        finally:
            rmtree(folder, ignore_errors=True)
        return made

    def snapshot(self, handle: SandboxHandle, path: str | None = None) -> "Snapshot":
        """Save its state: at ``path``, where it is kept; else for as long as this process lives."""
        from agentd.model.snapshot import SnapshotManifest
        from agentd.sandbox import snapshots

        about = SnapshotManifest(
            id="snp-" + os.urandom(8).hex(),
            fidelity=handle.snapshots("snapshot").fidelity,
            backend=handle.backend,
            level=handle.level.label,
            spec=handle.spec,
        )
        where = path or os.path.join(self._own_shelf().folder(), about.id)

        def capture(folder: str) -> None:
            self._operate(handle, LifecycleEvent.SNAPSHOT, folder)

        return snapshots.write(where, capture, about, kept=path is not None)

    def capture(self, handle: SandboxHandle, folder: str) -> None:
        """Write its state into an empty folder, for whoever knows what its wall writes."""
        handle.snapshots("commit")
        self._operate(handle, LifecycleEvent.SNAPSHOT, folder)

    def pause(self, handle: SandboxHandle, idle: float | None = None) -> bool:
        """Let nothing in it run until ``resume``. Raises Refused where its wall cannot.

        With ``idle`` only where it has been idle for so many seconds. Returns False where it has
        not, and goes on.
        """
        handle.able(PAUSE, "pause")
        return self._operate(handle, LifecycleEvent.PAUSE, idle=idle)

    def resume(self, handle: SandboxHandle) -> None:
        handle.able(PAUSE, "resume")
        self._operate(handle, LifecycleEvent.RESUME)

    def destroy(self, handle: SandboxHandle) -> None:
        """End everything in it and free everything it held; idempotent."""
        self._end(handle, LifecycleEvent.DESTROY, None)

    @property
    def ours(self) -> bool:
        """Tells whether it is ours: False in a forked copy of the process that made it."""
        return os.getpid() == self._owner

    def sandboxes(self) -> tuple[SandboxHandle, ...]:
        with self._lock:
            return tuple(self._handles.values())

    def close(self) -> None:
        """Destroy every sandbox, then the backends; idempotent. A forked copy does nothing."""
        if not self.ours:
            return
        with contextlib.ExitStack() as rest:  # all of it, whatever one of them raises
            if self._shelf is not None:
                rest.callback(self._shelf.close)
            rest.callback(self._close_backends)
            rest.callback(self._finisher.close)
            for handle in self.sandboxes():
                rest.callback(self.destroy, handle)

    def _close_backends(self) -> None:
        with self._lock:
            made, self._backends = list(self._backends.values()), {}
        with contextlib.ExitStack() as rest:
            for backend in made:
                rest.callback(_close, backend)

    def _bring_up(self, handle: SandboxHandle, started: float) -> SandboxHandle:
        self._register(handle)
        try:
            self._feed(handle, LifecycleEvent.START)
        except BaseException as error:
            self._end(handle, LifecycleEvent.FAILED, error)
            raise
        handle.unreported_ms = (time.monotonic() - started) * 1000
        return handle

    def _operate(
        self,
        handle: SandboxHandle,
        event: LifecycleEvent,
        folder: str = "",
        idle: float | None = None,
        *,
        forks: bool = False,
    ) -> bool:
        """Do what a sandbox may fail to do and live on. Only its end cuts in: one at a time. A
        snapshot that is for ``forks`` alone may share what the sandbox has.

        Returns False, and does nothing, where it has not been ``idle`` for so many seconds."""
        with handle.turn, handle.telling():
            with handle.lock:
                if idle is not None and not handle.is_idle(idle):
                    return False
                step = lifecycle.advance(handle.state, event)
                if event is LifecycleEvent.SNAPSHOT:
                    handle.check_idle()
                handle.state = step.state
            try:
                following = [self._perform(handle, do, folder, forks) for do in step.instructions]
            except BaseException:
                following = [_FAILED[event]]
                raise
            finally:
                with handle.lock:
                    for result in filter(None, following):
                        self._feed(handle, result)
                handle.pause_over()
        return True

    def _restorable(self, spec: SandboxSpec) -> Choice:
        choice = choose(spec, self.backend, self._allowed())
        restorer(choice.backend, "restore")
        return choice

    def _own_shelf(self) -> "Shelf":
        from agentd.sandbox.shelf import Shelf

        with self._lock:
            if self._shelf is None:
                self._shelf = Shelf()
            return self._shelf

    def _register(self, handle: SandboxHandle) -> None:
        with self._lock:
            if len(self._handles) >= MAX_SANDBOXES:
                raise SandboxError(
                    f"there are {MAX_SANDBOXES} sandboxes already",
                    remediation="close some of them first",
                )
            self._handles[handle.id] = handle

    def _end(
        self, handle: SandboxHandle, event: LifecycleEvent, reason: BaseException | None
    ) -> None:
        try:
            with handle.lock:
                self._feed(handle, event)
        except Exception as error:  # a wall of somebody else's may raise anything
            if reason is None:
                raise
            reason.add_note(f"and the sandbox could not be freed: {error}")
        finally:
            handle.pause_over()

    def _feed(self, handle: SandboxHandle, event: LifecycleEvent) -> None:
        """Events in, instructions out, until none is left; an instruction's end is an event."""
        with handle.lock:  # who brings it up does not hold it: another may end it meanwhile
            step = lifecycle.advance(handle.state, event)
            handle.state = step.state
        for instruction in step.instructions:
            following = self._perform(handle, instruction)
            if following is not None:
                self._feed(handle, following)

    def _perform(
        self, handle: SandboxHandle, instruction: Do, folder: str = "", forks: bool = False
    ) -> LifecycleEvent | None:
        if instruction is Do.LAUNCH:
            self._keep_wall(handle, launch(handle))
            return LifecycleEvent.WALL_UP
        if instruction is Do.CONNECT:
            self._keep_guest(handle, self._connected(handle, handle.wall))
            begin(handle)
            return LifecycleEvent.GUEST_READY
        if instruction is Do.DISCONNECT:
            # The kill begins first: an agent that ends need not notice its connections close.
            with contextlib.suppress(SandboxError):  # a third party's: the kill goes on
                if (early := ENDS_EARLY.of(handle._wall)) is not None:
                    early.begin_kill()
            if handle._guest is not None:
                handle._guest.close()
            return None
        if instruction is Do.KILL:
            if handle._wall is not None:
                self._kill(handle._wall)
            return LifecycleEvent.WALL_GONE
        if instruction is Do.FORGET:
            with self._lock:
                self._handles.pop(handle.id, None)
            handle._guest = None
            return None
        if instruction is Do.CAPTURE:
            try:
                _capture(handle, folder, forks)
            finally:
                if handle._guest is not None:
                    # A machine's streams have not survived it, and its monitor may not tell us.
                    handle._guest.renew(lost=fidelity(handle._wall) == "memory")
            return LifecycleEvent.SNAPSHOT_OVER
        if instruction is Do.FREEZE:
            handle.able(PAUSE, "pause").pause()
            return None
        handle.able(PAUSE, "resume").resume()
        return None

    def _connected(self, handle: SandboxHandle, wall: Wall) -> Guest:
        guest = self._connect(wall)
        guest.truly = handle.truly
        return guest

    def _keep_wall(self, handle: SandboxHandle, wall: Wall) -> None:
        if not handle.keep(wall=wall):
            self._kill(wall)

    def _keep_guest(self, handle: SandboxHandle, guest: Guest) -> None:
        if not handle.keep(guest=guest):
            guest.close()

    def _kill(self, wall: Wall) -> None:
        """Kill it: nothing runs behind it when this returns; what it held may last a moment."""
        with contextlib.suppress(SandboxError):  # a third party's: the kill says more
            if (early := ENDS_EARLY.of(wall)) is not None:
                early.end()
                self._finisher.soon(wall.kill)
                return
        wall.kill()


def _close(backend: Backend) -> None:
    with of_others(backend, "closed"):
        backend.close()


def _capture(handle: SandboxHandle, folder: str, forks: bool) -> None:
    able = handle.snapshots("snapshot")
    # Somebody else's wall may be one of ours with a snapshot and a restore of its own.
    ours = handle.backend in backends.BUILTIN
    shares = BRANCH.of(able) if forks and ours else None
    if shares is not None and not (handle._guest is not None and handle._guest.busy()):
        shares.branch(folder)
    else:
        able.snapshot(folder)
