"""Makes sandboxes and ends them: the one place where the lifecycle's instructions become I/O.

A pool would answer ``create`` before a backend is asked, a lease would send DESTROY, and a journal
would write down each step of ``_feed``; they join here.
"""

import os
import threading
import time
from base64 import b32encode
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from agentd.model.enforcement import Enforcement
from agentd.model.errors import AgentdError, InvalidInput, SandboxError
from agentd.model.result import SandboxInfo
from agentd.model.spec import SandboxSpec
from agentd.sandbox import backends, lifecycle
from agentd.sandbox.choose import Choice, choose
from agentd.sandbox.lifecycle import Do, Event, State
from agentd.sandbox.ports import Backend, Wall
from agentd.transport.guest import Guest

if TYPE_CHECKING:
    from agentd.model.isolation import IsolationLevel

MAX_SANDBOXES = 4096
_END_SECONDS = 10.0


def connect(wall: Wall) -> Guest:
    return Guest(wall.open_stream, passes_descriptors=wall.passes_descriptors)


class SandboxHandle:
    """One sandbox. ``wall`` and ``guest`` are there from READY until it is destroyed."""

    def __init__(self, choice: Choice) -> None:
        # 60 random bits: an id cannot be guessed, nor met twice.
        self.id = "sbx-" + b32encode(os.urandom(8)).decode().lower()[:12]
        self.spec: SandboxSpec = choice.plan.spec
        self.backend: str = choice.backend.name
        self.level: IsolationLevel = choice.backend.level
        self.state = State.CREATED
        self.setup_ms = 0.0
        self.unreported_ms = 0.0  # set-up time that no result has counted yet
        self.counters: dict[str, int] = {}  # the wall's, when last looked at
        self.choice = choice
        self.lock = threading.Lock()
        self._wall: Wall | None = None
        self._guest: Guest | None = None

    @property
    def wall(self) -> Wall:
        if self._wall is None:
            raise SandboxError(f"sandbox {self.id} is {self.state}")
        return self._wall

    @property
    def guest(self) -> Guest:
        if self._guest is None:
            raise SandboxError(
                f"sandbox {self.id} is {self.state}", remediation="create a new sandbox"
            )
        return self._guest

    @property
    def enforcement(self) -> Enforcement:
        return self.wall.enforcement

    @property
    def info(self) -> SandboxInfo:
        return SandboxInfo(self.id, self.backend, self.level.label)


class Manager:
    """Thread-safe. Backends are made once each and shared by their sandboxes."""

    def __init__(
        self,
        load: Callable[[str], Backend] = backends.load,
        connect: Callable[[Wall], Guest] = connect,
        made: Mapping[str, Backend] | None = None,
    ) -> None:
        """``made``: backends that exist already; they are ours to close from now on."""
        self._load = load
        self._connect = connect
        self._lock = threading.Lock()
        self._backends: dict[str, Backend] = dict(made or {})
        self._handles: dict[str, SandboxHandle] = {}
        self._owner = os.getpid()

    def backend(self, name: str) -> Backend:
        """The shared one. Raises InvalidInput for a name nobody has."""
        with self._lock:
            if name not in self._backends:
                self._backends[name] = self._load(name)
            return self._backends[name]

    def create(self, spec: SandboxSpec) -> SandboxHandle:
        """A sandbox that is ready.

        Raises Unavailable, Refused and InvalidInput before anything was made, SandboxError when it
        could not be built; nothing is left behind then.
        """
        started = time.monotonic()
        handle = SandboxHandle(choose(spec, self.backend))
        self._register(handle)
        try:
            self._feed(handle, Event.START)
        except BaseException as error:
            self._end(handle, Event.FAILED, error)
            raise
        handle.setup_ms = handle.unreported_ms = (time.monotonic() - started) * 1000
        return handle

    def destroy(self, handle: SandboxHandle) -> None:
        """End everything in it and free everything it held; idempotent."""
        self._end(handle, Event.DESTROY, None)

    @property
    def ours(self) -> bool:
        """False in a forked copy of the process that made it."""
        return os.getpid() == self._owner

    def sandboxes(self) -> tuple[SandboxHandle, ...]:
        with self._lock:
            return tuple(self._handles.values())

    def close(self) -> None:
        """Destroy every sandbox, then the backends; idempotent. A forked copy does nothing."""
        if not self.ours:
            return
        for handle in self.sandboxes():
            self.destroy(handle)
        with self._lock:
            made, self._backends = list(self._backends.values()), {}
        for backend in made:
            backend.close()

    def _register(self, handle: SandboxHandle) -> None:
        with self._lock:
            if len(self._handles) >= MAX_SANDBOXES:
                raise SandboxError(
                    f"there are {MAX_SANDBOXES} sandboxes already",
                    remediation="close some of them first",
                )
            self._handles[handle.id] = handle

    def _end(self, handle: SandboxHandle, event: Event, reason: BaseException | None) -> None:
        try:
            with handle.lock:
                self._feed(handle, event)
        except AgentdError as error:
            if reason is None:
                raise
            reason.add_note(f"and the sandbox could not be freed: {error}")

    def _feed(self, handle: SandboxHandle, event: Event) -> None:
        """Events in, instructions out, until none is left; an instruction's end is an event."""
        step = lifecycle.advance(handle.state, event)
        handle.state = step.state
        for instruction in step.instructions:
            following = self._perform(handle, instruction)
            if following is not None:
                self._feed(handle, following)

    def _perform(self, handle: SandboxHandle, instruction: Do) -> Event | None:
        if instruction is Do.LAUNCH:
            handle._wall = handle.choice.backend.launch(handle.choice.plan)
            return Event.WALL_UP
        if instruction is Do.CONNECT:
            handle._guest = self._connect(handle.wall)
            return Event.GUEST_READY
        if instruction is Do.DISCONNECT:
            if handle._guest is not None:
                handle._guest.close()
            return None
        if instruction is Do.KILL:
            if handle._wall is not None:
                handle._wall.kill()
            return Event.WALL_GONE
        if instruction is Do.FORGET:
            with self._lock:
                self._handles.pop(handle.id, None)
            handle._guest = None
            return None
        raise InvalidInput(
            f"backend {handle.backend} cannot {instruction} a sandbox",
            remediation="destroy it and create a new one",
        )
