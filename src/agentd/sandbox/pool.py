"""Sandboxes made ahead, for requests that ask for nothing special. None is ever handed out twice.

A shelf holds ready sandboxes of one spec. A claim takes the oldest; a thread fills up again, runs a
dummy command in each so that the first real one finds its pages there, and replaces what is old.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from agentd.model.errors import AgentdError
from agentd.model.packages import with_packages
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox import guard
from agentd.sandbox.abilities import SERVED
from agentd.sandbox.handle import SandboxHandle

_CHECK_SECONDS = 1.0  # between looks at what stands ready: each is a question to its wall
_LOOK_SECONDS = 0.1  # between looks at whether a shelf is short
# The wait after a failure, so that a broken machine is not kept busy with tries.
_RETRY_SECONDS = 5.0
# A shelf grows when it runs low, and shrinks to ``least`` after so long without a claim and without
# another that stands ready: to make one may take longer.
_QUIET_SECONDS = 30.0
# Filling waits until no claim has come for so long, or it would compete with the command that the
# last claimer runs. A shelf with a quarter left or less waits only after a miss: then the caller
# builds its own sandbox, and filling would compete with that.
_CALM_SECONDS = 0.025
_LOW = 4
_WARM = ExecRequest(("true",))


class ShelfSpec(NamedTuple):
    """``least`` are always ready, up to ``most`` while claims come; none gets older than ``ttl``
    seconds."""

    spec: SandboxSpec
    least: int
    most: int
    ttl: float


class SandboxPool:
    """Thread-safe. Owns what it made until it is claimed."""

    def __init__(
        self,
        shelves: Sequence[ShelfSpec],
        create: Callable[[SandboxSpec], SandboxHandle],
        destroy: Callable[[SandboxHandle], None],
    ) -> None:
        self._shelves = {shelf_key(wanted.spec): _Shelf(wanted) for wanted in shelves}
        self._create = create
        self._destroy = destroy
        self._lock = threading.Lock()
        self._wanted = threading.Condition(self._lock)
        self._closing = False
        self._thread = threading.Thread(target=self._fill, name="pool", daemon=True)
        if self._shelves:
            self._thread.start()

    def claim(self, spec: SandboxSpec) -> SandboxHandle | None:
        """Claim one that serves ``spec``: the caller's from now on; None where there is none.

        It gets the spec's environment and bounds of commands, which are no part of a wall.
        """
        with self._lock:
            shelf = self._shelves.get(shelf_key(spec))
            if shelf is None or self._closing:
                return None
            shelf.asked = time.monotonic()
            taken = shelf.ready.popleft() if shelf.ready else None
            if taken is None:
                shelf.missed = shelf.asked
            if shelf.low():
                shelf.target = min(shelf.wanted.most, shelf.target + 1)
            if not shelf.rest():  # else it will be seen soon enough: whoever claims is in a hurry
                self._wanted.notify()
        if taken is None:
            return None
        handle = taken.handle
        handle.spec = _with_packages(spec, handle.spec)
        return handle

    def sizes(self) -> dict[str, int]:
        """Return how many are ready, by image and level."""
        with self._lock:
            return {
                f"{shelf.wanted.spec.image}/{shelf.wanted.spec.isolation.label}": len(shelf.ready)
                for shelf in self._shelves.values()
            }

    def reshape(self, shelves: Sequence[ShelfSpec]) -> None:
        """Has other shelves from now on. What stands ready on one that stays is kept."""
        with self._lock:
            if shelves and not self._closing and not self._thread.ident:
                # A new one: one that could not be started cannot be started again.
                self._thread = threading.Thread(target=self._fill, name="pool", daemon=True)
                self._thread.start()  # first: where none is left, all is as it was
            before = self._shelves
            self._shelves = {shelf_key(wanted.spec): _Shelf(wanted) for wanted in shelves}
            for key in self._shelves.keys() & before.keys():
                self._shelves[key].ready = before.pop(key).ready
            going = [one.handle for shelf in before.values() for one in shelf.ready]
            self._wanted.notify()
        for handle in going:
            self._end(handle)

    @property
    def works(self) -> bool:
        """Tells whether somebody fills it, where that is asked for."""
        with self._lock:
            return not self._shelves or self._thread.is_alive()

    def owns(self, handle: SandboxHandle) -> bool:
        with self._lock:
            return any(one.handle is handle for s in self._shelves.values() for one in s.ready)

    def close(self) -> None:
        """Destroy what was not claimed; idempotent."""
        with self._lock:
            self._closing = True
            self._wanted.notify()
        if self._thread.is_alive():
            self._thread.join()
        for handle in self._take(lambda shelf, one: True):
            self._end(handle)

    def _fill(self) -> None:
        check_at = 0.0
        while True:
            with self._lock:
                ripe = (s for s in self._shelves.values() if s.short() and not s.rest())
                shelf = next(ripe, None)
                if shelf is None and not self._closing:
                    self._wanted.wait(_LOOK_SECONDS)
                if self._closing:
                    return
            try:
                if time.monotonic() >= check_at:
                    check_at = time.monotonic() + _CHECK_SECONDS
                    for handle in self._take_spare():
                        self._end(handle)
                if shelf is not None:
                    self._add(shelf)
            except Exception as error:
                guard.tell(error)
                if shelf is not None:
                    shelf.retry_at = time.monotonic() + _RETRY_SECONDS

    def _add(self, shelf: "_Shelf") -> None:
        made = time.monotonic()
        handle = None
        try:
            handle = self._create(shelf.wanted.spec)
            handle.guest.run(_WARM)
        except (AgentdError, OSError):
            if handle is not None:
                self._end(handle)
            shelf.retry_at = time.monotonic() + _RETRY_SECONDS
            return
        handle.unreported_ms = 0.0  # the caller did not wait for it
        with self._lock:
            kept = self._shelves.get(shelf_key(shelf.wanted.spec))
            if kept is not None:
                kept.ready.append(_Ready(handle, made))
                kept.filled = time.monotonic()
        if kept is None:  # the shelf was taken away meanwhile
            self._end(handle)

    def _take_spare(self) -> list[SandboxHandle]:
        """Among them those whose network was closed for good, with that of all, as what serves it
        died too often. Each is asked, and none waits for that to be claimed."""
        with self._lock:
            ready = [one.handle for shelf in self._shelves.values() for one in shelf.ready]
        closed = [each for each in ready if not _is_served(each)]
        return self._take(lambda shelf, one: one.handle in closed or _is_spare(shelf, one))

    def _take(self, which: "Callable[[_Shelf, _Ready], bool]") -> list[SandboxHandle]:
        taken = []
        with self._lock:
            for shelf in self._shelves.values():
                shelf.settle()
                going = [one for one in shelf.ready if which(shelf, one)]
                for one in going:
                    shelf.ready.remove(one)
                    taken.append(one.handle)
        return taken

    def _end(self, handle: SandboxHandle) -> None:
        with contextlib.suppress(AgentdError):  # its lease ends what could not be ended
            self._destroy(handle)


class _Ready(NamedTuple):
    handle: SandboxHandle
    made: float


class _Shelf:
    def __init__(self, wanted: ShelfSpec) -> None:
        self.wanted = wanted
        self.ready: deque[_Ready] = deque()
        self.target = wanted.least
        # Never: the clock begins at the machine's boot, which may have been a moment ago.
        self.asked = self.filled = float("-inf")
        self.missed = float("-inf")  # when a claim found none, and its caller had to make one
        self.retry_at = 0.0

    def short(self) -> bool:
        return len(self.ready) < self.target and time.monotonic() >= self.retry_at

    def low(self) -> bool:
        return len(self.ready) <= self.target // _LOW

    def rest(self) -> float:
        """Seconds until it is time to make another one."""
        since = self.missed if self.low() else self.asked
        return max(0.0, since + _CALM_SECONDS - time.monotonic())

    def settle(self) -> None:
        if time.monotonic() - max(self.asked, self.filled) > _QUIET_SECONDS:
            self.target = self.wanted.least


def _is_served(handle: SandboxHandle) -> bool:
    wall = SERVED.of(handle.wall)
    try:
        return wall is None or wall.is_served()
    except AgentdError:  # it ends, or its supervisor does not answer: that is for others to find
        return True


def _is_spare(shelf: _Shelf, one: _Ready) -> bool:
    """Return whether it is too old, dead, or above the number wanted."""
    if time.monotonic() - one.made > shelf.wanted.ttl or not one.handle.wall.alive():
        return True
    return len(shelf.ready) > max(shelf.target, shelf.wanted.least) and one is shelf.ready[0]


def _with_packages(spec: SandboxSpec, made: SandboxSpec) -> SandboxSpec:
    """Return ``spec`` with the packages that the sandbox was made with, and their variables."""
    if not made.locked:
        return msgspec.structs.replace(spec, backend=spec.backend)
    (mount,) = [each for each in made.mounts if each.packages]
    env = with_packages(spec.env, made.env, mount.target)
    return msgspec.structs.replace(spec, mounts=made.mounts, locked=made.locked, env=env)


def shelf_key(spec: SandboxSpec) -> bytes:
    """Return the parts of a spec that make a wall: requests for a shelf may differ in the rest."""
    limits = msgspec.structs.replace(spec.limits, timeout=None, output=None)
    return msgspec.json.encode(msgspec.structs.replace(spec, env={}, limits=limits))
