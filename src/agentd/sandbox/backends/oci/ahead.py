"""Containers that are started ahead of the requests for them, one of each kind asked for often.

A kind is all that is settled once a runtime has started: only variables, and the rules of a
restricted network, are left to the request. Nothing has run in such a container but its agent,
which is confined and waits.
"""

import contextlib
import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from agentd.linux.cgroup import Group
from agentd.model.egress import EgressBounds
from agentd.model.errors import AgentdError
from agentd.model.spec import DEFAULT_IMAGE
from agentd.sandbox import guard
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux import spares
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.linux.spares import ImageFiles
from agentd.sandbox.backends.oci.starting import Launcher

#: After the last request, before one is started: what it takes a request would lack.
QUIET_SECONDS = 0.1
#: After which one that nobody took is ended.
IDLE_SECONDS = 600.0
# Blocks of ids of which a few may lie idle.
_ROOMY = 64
_REMEMBERED = 64


class Begun(NamedTuple):
    """A sandbox that its launcher was asked for; ``undo`` ends it and frees what it has."""

    launcher: Launcher
    answers: socket.socket
    listener: socket.socket
    block: Block | None
    group: Group | None
    detail: str  # why there is no group
    undo: contextlib.ExitStack

    def end(self, *, ended: bool = False) -> None:
        """``ended``: no process of it is left."""
        if self.block is not None and ended:
            self.block.release()
        with contextlib.suppress(OSError):  # a group that stays is swept by a later agentd
            self.undo.close()


class ContainerKind(NamedTuple):
    """What a container is started for; ``settled`` is the rest of its plan, encoded."""

    program: str
    image: str
    files: ImageFiles | None
    settled: bytes


class _Waiting(NamedTuple):
    begun: Begun
    until: float  # of the monotonic clock


Make = Callable[[], Begun | None]


def settled(plan: LinuxPlan) -> LinuxPlan:
    """Returns the plan without what a request may say when the container has started."""
    left = {"env": {}, "egress": (), "egress_bounds": EgressBounds()}
    spec = msgspec.structs.replace(plan.spec, **left)
    return msgspec.structs.replace(plan, spec=spec, env={}, table=None, authority=None)


def kind_of(
    plan: LinuxPlan, files: ImageFiles | None, program: str, launcher: Launcher
) -> ContainerKind | None:
    """None where it takes a container of its own: with something mounted, where ids are few, and
    with what is nobody else's, as secrets and an authority that its programs trust."""
    scarce = launcher.own_users and launcher.ids.blocks < _ROOMY
    if plan.mounts or plan.cow or plan.bare or scarce or _is_private(plan):
        return None
    image = plan.spec.image
    return ContainerKind(program, image, files, msgspec.msgpack.encode(settled(plan)))


def _is_private(plan: LinuxPlan) -> bool:
    if plan.table is None:
        return bool(plan.spec.secrets)
    from agentd.sandbox.backends import certificates  # late: few need it

    return bool(plan.spec.secrets) or certificates.reads(plan.table)


class ContainersAhead:
    """Owns those that wait. Thread-safe; its thread begins with the first kind that is asked for
    often, and ``close`` waits for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked: OrderedDict[ContainerKind, int] = OrderedDict()
        self._wanted: dict[ContainerKind, Make] = {}
        self._waiting: dict[ContainerKind, _Waiting] = {}
        self._unwanted: list[Begun] = []
        self._last = 0.0  # when something was asked for, by the monotonic clock
        self._thread: threading.Thread | None = None
        self._owner = os.getpid()
        self._closed = False

    def take(self, kind: ContainerKind | None, launcher: Launcher) -> Begun | None:
        """Takes one that waits for a request of this kind, or is on its way; the caller's to
        end."""
        with self._changed:
            self._last = time.monotonic()
            found = None if kind is None else self._waiting.pop(kind, None)
            if found is not None and (found.begun.launcher is not launcher or self._is_copy()):
                self._discard(found.begun)
                return None
        return None if found is None else found.begun

    def want(self, kind: ContainerKind, make: Make) -> None:
        """Count that ``kind`` was asked for, and have one of it started soon, where that happens
        often. Those of other files by the name of its image are ended."""
        with self._changed:
            if self._closed or self._is_copy():
                return
            self._last = time.monotonic()
            self._asked[kind] = self._asked.get(kind, 0) + 1
            self._asked.move_to_end(kind)
            while len(self._asked) > _REMEMBERED:
                self._asked.popitem(last=False)
            self._drop_moved(kind)
            if self._asked[kind] >= spares.OFTEN and kind not in self._waiting:
                self._wanted[kind] = make
            if self._thread is None and self._wanted:
                thread = threading.Thread(target=self._run, name="ahead", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no thread can be had: all are started for their requests
                    self._wanted.clear()
                    return
                self._thread = thread
            self._changed.notify()

    def close(self) -> list[Begun]:
        """Start none any more. What waits is the caller's to end, once its launcher has ended;
        idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._is_copy():  # a forked copy of us: they belong to the original
            return []
        if self._thread is not None:
            self._thread.join()
        with self._changed:
            left = [each.begun for each in self._waiting.values()] + self._unwanted
            self._waiting, self._unwanted = {}, []
        return left

    def _is_copy(self) -> bool:
        return os.getpid() != self._owner

    def _drop_moved(self, kind: ContainerKind) -> None:
        if kind.image == DEFAULT_IMAGE:
            return
        for other in list(self._waiting):
            if other.image == kind.image and other.files != kind.files:
                self._discard(self._waiting.pop(other).begun)

    def _discard(self, begun: Begun) -> None:
        """Our thread ends it: that may take a moment."""
        if not self._is_copy():
            self._unwanted.append(begun)
            self._changed.notify()

    def _run(self) -> None:
        while (task := self._next()) is not None:
            kind, make = task
            try:
                if make is None:
                    self._end_unwanted()
                elif kind is not None and (begun := make()) is not None:
                    self._keep(kind, begun)
            except (AgentdError, OSError):
                pass  # whoever needs one says so
            except Exception as error:  # the next ones are started all the same
                guard.tell(error)

    def _next(self) -> tuple[ContainerKind | None, Make | None] | None:
        """What to start; nothing, to end what is unwanted; None once we are closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                self._expire(now)
                if self._unwanted:
                    return None, None
                quiet = self._last + QUIET_SECONDS - now
                if self._wanted and quiet <= 0:
                    kind = next(iter(self._wanted))
                    return kind, self._wanted.pop(kind)
                due = [each.until - now for each in self._waiting.values()]
                due += [quiet] if self._wanted else []
                self._changed.wait(min(due, default=None))
        return None

    def _expire(self, now: float) -> None:
        for kind, each in list(self._waiting.items()):
            if each.until <= now:
                self._unwanted.append(self._waiting.pop(kind).begun)

    def _end_unwanted(self) -> None:
        with self._changed:
            unwanted, self._unwanted = self._unwanted, []
        for begun in unwanted:
            begun.end()

    def _keep(self, kind: ContainerKind, begun: Begun) -> None:
        """Of the kinds that were asked for last only."""
        with self._changed:
            kept = set(list(self._asked)[-spares.MOST_KINDS :])
            for other in self._waiting.keys() - kept:
                self._unwanted.append(self._waiting.pop(other).begun)
            if kind not in kept:
                self._unwanted.append(begun)
                return
            self._waiting[kind] = _Waiting(begun, time.monotonic() + IDLE_SECONDS)
