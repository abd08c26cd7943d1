"""Sandboxes that stand still: by request, or because they were idle; what their agents are told."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from agentd.daemon.sandboxes.adoption import GRACE_SECONDS
from agentd.model.errors import Unsupported
from agentd.model.events import EventKind
from agentd.model.idle import IDLE, OnIdle
from agentd.sandbox import guard
from agentd.sandbox.abilities import PAUSE
from agentd.sandbox.lifecycle import State

if TYPE_CHECKING:
    from agentd.daemon import events
    from agentd.daemon.pipeline import Pipeline
    from agentd.daemon.sandboxes.live import Live

# Until what could not be paused is tried again.
_AGAIN_SECONDS = 60.0


class Pauses:
    """The part of ``Sandboxes`` that has them stand still and go on."""

    _pipeline: "Pipeline"
    _publish: "events.Publish"
    _resting: set[str]  # whose sandboxes somebody looks after that are idle
    _expiring: set[str]  # and that have no lease any more

    def all(self) -> "list[Live]":
        raise NotImplementedError

    def end(self, live: "Live", reason: str = "destroyed") -> None:
        raise NotImplementedError

    def _change(self, live: "Live", **fields: object) -> None:
        raise NotImplementedError

    def pause(self, live: "Live") -> None:
        """Pause it until ``resume``; one that rests for being idle goes on by itself no more."""
        with live.standing:
            if live.handle.state is State.PAUSED and live.record.paused_by:
                self._note(live, "")
                return
            live.check_ready("pause it")
            self._pause(live, "")

    def resume(self, live: "Live") -> None:
        with live.standing:
            self._resume(live)

    def rest(self) -> None:
        """Pause, or end, what has been idle for as long as it may. Never blocks."""
        _begin_each("idle", filter(_is_due, self.all()), self._rest, self._resting)

    def expire(self) -> None:
        """End those whose lease is over. Never blocks."""
        over = (live for live in self.all() if live.left == 0.0)
        _begin_each("lease", over, self._expire, self._expiring)

    def wake_by_use(self, live: "Live") -> None:
        """Let it pause when it is idle, if it is to, and go on with whatever is asked of it then.

        Raises Unsupported where it is to and cannot.
        """
        if live.record.on_idle == OnIdle.PAUSE:
            try:
                live.handle.able(PAUSE, "pause")
            except Unsupported as error:
                error.remediation += "; or have it ended when it is idle: --on-idle end"
                raise
            live.handle.on_use = lambda: self._wake(live)

    def _rest(self, live: "Live") -> None:
        if not _is_due(live):
            return
        try:
            if live.record.on_idle == OnIdle.END:
                self.end(live, IDLE)
                return
            with live.standing:
                self._pause(live, IDLE, live.record.idle_timeout)
        except BaseException:
            live.handle.used = time.monotonic() + _AGAIN_SECONDS
            raise

    def _expire(self, live: "Live") -> None:
        if live.left == 0.0:  # nobody has renewed it meanwhile
            self.end(live, "lease_expired")

    def _wake(self, live: "Live") -> None:
        with live.standing:
            if live.record.paused_by == IDLE and not live.ending:
                self._resume(live)

    def _pause(self, live: "Live", why: str, idle: float | None = None) -> None:
        # Where it is a process its clock goes on: we end it, and no command's time is used up.
        tell_agent(live, None, still=True)
        self._note(live, why)  # first: a daemon that is killed in between leaves it paused
        paused = False
        try:
            paused = self._pipeline.manager.pause(live.handle, idle)
        finally:
            if not paused:
                self._note(live, "")
                tell_agent(live, live.left)
        if paused:
            self._change(live, state=str(live.handle.state))
            about = {"why": why} if why else {}
            self._publish(EventKind.PAUSED, live.record.principal, live.id, **about)

    def _note(self, live: "Live", why: str) -> None:
        if live.record.paused_by != why:
            self._change(live, paused_by=why)

    def _resume(self, live: "Live") -> None:
        self._pipeline.manager.resume(live.handle)
        tell_agent(live, live.left)
        self._change(live, state=str(live.handle.state), paused_by="")
        self._publish(EventKind.RESUMED, live.record.principal, live.id)


def _begin_each(
    name: str, due: "Iterable[Live]", work: "Callable[[Live], None]", busy: set[str]
) -> None:
    """Begin the ``work`` on each, in a thread of its owner's, who has one of that name: a guest
    that does not answer, or a wall that does not end, holds up nobody else's sandboxes. ``busy``
    has those who have; one thread calls it."""
    of: dict[str, list[Live]] = {}
    for live in due:
        if live.record.principal not in busy:
            of.setdefault(live.record.principal, []).append(live)
    for owner, theirs in of.items():
        args = owner, theirs, work, busy
        thread = threading.Thread(target=_do_each, args=args, name=name, daemon=True)
        busy.add(owner)
        try:
            thread.start()
        except RuntimeError as error:  # no thread is left: it is tried again
            busy.discard(owner)
            guard.tell(error)


def _do_each(owner: str, due: "list[Live]", work: "Callable[[Live], None]", busy: set[str]) -> None:
    try:
        for live in due:
            try:
                work(live)
            except Exception as error:  # it goes on, and so do we
                guard.tell(error)
    finally:
        busy.discard(owner)


def _is_due(live: "Live") -> bool:
    seconds, handle = live.record.idle_timeout, live.handle
    if live.ending or live.left == 0.0:
        return False  # it ends
    return seconds is not None and handle.state is State.READY and handle.is_idle(seconds)


def tell_agent(live: "Live", seconds: float | None, *, still: bool = False) -> None:
    live.handle.tell_lease(None if seconds is None else agents(seconds), still=still)


def agents(seconds: float) -> int:
    """Return the agent's own lease, the last of three, in milliseconds."""
    return int((seconds + 2 * GRACE_SECONDS) * 1000)
