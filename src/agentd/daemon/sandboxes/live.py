"""One sandbox of a running daemon: its handle, its owner, its record and its lease."""

import threading
import time
from collections.abc import Mapping
from typing import cast

from agentd.daemon.commands.ends import DESTROYED, IDLE_OVER, LEASE_OVER
from agentd.daemon.store.records import SandboxRecord
from agentd.model.api import SandboxView
from agentd.model.egress import cassette
from agentd.model.errors import Conflict
from agentd.model.idle import IDLE, IdleRule
from agentd.model.typed import like
from agentd.sandbox import abilities
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.lifecycle import State
from agentd.sandbox.ports import Leased
from agentd.sandbox.supervisor.held import boottime

NO_ORIGIN: Mapping[str, str] = {}
# What is told to have ended the commands that ran in it, where it did not end by itself.
_WHY = {"destroyed": DESTROYED, "lease_expired": LEASE_OVER, IDLE: IDLE_OVER}


class Live:
    def __init__(
        self,
        handle: SandboxHandle,
        record: SandboxRecord,
        left: float | None,
        origin: Mapping[str, str] = NO_ORIGIN,
    ) -> None:
        """Its lease ends in ``left`` seconds; never, for None. ``origin`` says of which
        ``snapshot`` it was made, or that it is a ``fork_of`` a sandbox, by their ids."""
        self.handle = handle
        self.record = record
        self.id = record.id
        self.origin = origin
        self.lease(left)
        self.lock = threading.Lock()  # held while its record changes
        self.standing = threading.Lock()  # held while it is paused or resumed
        self.ending = False
        self.why = ""  # what is known of it, where it ended by itself

    def begin_end(self, reason: str) -> bool:
        """Begin its end, and tell what runs in it why; False where it ended already."""
        with self.lock:
            first, self.ending = not self.ending, True
            if first:
                self._tell(reason)
        return first

    def begin_end_if_idle(self, reason: str) -> bool:
        """Begin its end where that takes no time; where not, the caller ends it all the same.

        Never blocks. A command that is just being started is seen by nobody yet, and ends with it:
        that is told why, too.
        """
        if not self.lock.acquire(blocking=False):
            return False
        try:
            if self.ending:
                return False
            # Not before: the call that is to end it otherwise may be refused, and then it lives.
            self.ending = self.wall.end_if_idle(lambda: self._tell(reason))
            return self.ending
        finally:
            self.lock.release()

    def _tell(self, reason: str) -> None:
        self.handle.why = _WHY.get(reason)

    def lease(self, left: float | None) -> None:
        """Set its lease, by a clock that nobody sets; what the record says is for people."""
        self._ends = None if left is None else boottime() + left

    @property
    def left(self) -> float | None:
        """Seconds until its lease ends."""
        return None if self._ends is None else max(0.0, self._ends - boottime())

    @property
    def idle(self) -> IdleRule:
        return IdleRule(self.record.idle_timeout, self.record.on_idle)

    @property
    def wall(self) -> Leased:
        return cast("Leased", self.handle.wall)  # a daemon's backends make no other

    def count_cassettes(self) -> None:
        """Count what it records, and is played, for its owner. Raises SandboxError."""
        if cassette(self.handle.spec.egress):
            wall = self.handle.able(abilities.CASSETTE, "record or replay what is asked in")
            wall.count_for(self.record.principal)

    def require_running(self, what: str) -> None:
        """Let one that rests for being idle go on. Raises Conflict while it is paused, or ends."""
        self.handle.rouse()
        self.check_ready(what)

    def check_ready(self, what: str) -> None:
        """Check as ``require_running`` does; what rests stays so."""
        if self.handle.state is not State.READY:
            fix = "resume it first" if self.handle.state is State.PAUSED else "create a new one"
            raise Conflict(
                f"cannot {what}: sandbox {self.id} is {self.handle.state}", remediation=fix
            )

    def view(self, *, usage: bool = False) -> SandboxView:
        record, left = self.record, self.left
        return like(
            SandboxView,
            record,
            state=str(self.handle.state),
            image=record.spec.image,
            image_digest=record.spec.image_digest,
            net=record.spec.net,
            egress=record.spec.egress,
            template=record.spec.template,
            packages=record.spec.locked,
            deadline=None if left is None else round(time.time() + left, 3),
            workspace=self.wall.workspace,
            command=getattr(self.wall, "command", ()),
            enforcement=dict(self.handle.enforcement),
            usage=self.wall.usage() if usage else {},
            abilities=abilities.names(self.wall),
            paused_by=record.paused_by if self.handle.state is State.PAUSED else "",
            fidelity=abilities.fidelity(self.wall),
        )
