"""Requests that wait until somebody allows them.

    ask --> pending --decide--> approved | denied
               |--- time, or the daemon's end --> expired
               `--- whoever asked gave up ------> withdrawn

Every step is in the store before anybody acts on it. An approval is of the one request that waits
for it, and of no other: what was not taken up in time is worth nothing.
"""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from agentd.daemon import events
from agentd.daemon.admission.approval_ends import decided, has_ended
from agentd.daemon.admission.approval_pages import ENDED, PENDING, ApprovalPlace, page, pending
from agentd.daemon.config import schema
from agentd.daemon.service.quotas import about_to_end
from agentd.daemon.store.errors import StoreError
from agentd.daemon.store.records import ApprovalRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.daemon.store.view import MAX_PAGE, Transaction
from agentd.model.api import ApprovalView
from agentd.model.canonical import canonical
from agentd.model.errors import (
    Forbidden,
    Full,
    InvalidInput,
    NotFound,
    QuotaExceeded,
    TooLarge,
)
from agentd.model.events import EventKind
from agentd.model.holds import has_share
from agentd.model.principal import Principal
from agentd.model.typed import like

MAX_ASKED = 64 << 10  # bytes of JSON: somebody is to read it
MAX_NOTE = 500
MAX_OF_ONE = 100  # that wait, of one principal
# Ended ones too, so that none fills the store: the oldest that have ended go for new ones.
MAX_KEPT_OF_ONE = 1000
MAX_BYTES_OF_ONE = 8 << 20  # of JSON: more than all that may wait
MAX_KEPT = 20_000
KEPT_SECONDS = 86400.0
LISTED_SECONDS = 3600.0  # ended ones are listed for so long
_AT_ONCE, _GO_FOR_ONE = 500, 16
_MAX_LATELY = 1024
_LATE = "nobody decided in time"
SANDBOX_ENDED = "its sandbox has ended"
DAEMON_ENDS = "the daemon was about to end"
NEW_SANDBOX = "a new one"  # for who reads what is asked, in place of an id


class _Parked:
    def __init__(self, principal: str, until: float, expires: float, sandbox: str) -> None:
        self.principal = principal
        self.sandbox = sandbox
        self.expires = expires  # as its record says
        self.until = until  # of the monotonic clock: nobody can set that one
        self.ended = threading.Event()


class Approvals:
    """Keeps requests until somebody decides on them. Thread-safe."""

    def __init__(
        self,
        store: SqliteStore,
        config: Callable[[], schema.ApprovalSettings] = schema.ApprovalSettings,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        publish: events.Publish = events.nobody,
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._monotonic = monotonic
        self._publish = publish
        self._lock = threading.Lock()
        self._parked: dict[str, _Parked] = {}
        self._of: Counter[str] = Counter()
        self._lately: dict[str, str] = {}  # sandboxes that have ended, and what is noted for that
        self._unnoted: set[str] = set()  # whose end the store refused: nobody waits for them
        self._closed = False
        # Their requests went with the daemon that held them.
        for id_ in pending(store):
            self._finish(id_, "expired", "the daemon ended while it waited")

    def ask(
        self,
        asked: Mapping[str, Any],
        principal: Principal,
        request_id: str,
        ttl: float | None = None,
    ) -> ApprovalView:
        """Park a request. ``asked`` says, as JSON, all that is to be decided on; ``ttl`` is in
        seconds, the configuration's at most. Raises Full, QuotaExceeded, TooLarge."""
        size = len(canonical(dict(asked)))
        if size > MAX_ASKED:
            raise TooLarge(
                f"a request of {size} bytes cannot be approved: nobody could read it",
                remediation=f"keep it under {MAX_ASKED} bytes",
            )
        now, most = self._clock(), float(self._config().ttl)
        ttl = most if ttl is None else min(ttl, most)
        record = ApprovalRecord(
            id=f"apr-{max(0, int(now * 1000)):012x}{os.urandom(6).hex()}",
            principal=principal.name,
            request=request_id,
            asked=dict(asked),
            state=PENDING,
            created=now,
            expires=now + ttl,
            size=size,
        )
        self._park(record, ttl, _sandbox(asked))
        try:
            self._store.write(lambda t: _keep(t, record))
        except BaseException:
            self._unpark(record.id)
            raise
        self._tell(record)
        # Its sandbox, or we, may have ended as it was decided on: nobody ends it again.
        if (note := self._lately.get(_sandbox(asked))) is not None:
            self._finish(record.id, "withdrawn", note)
        elif self._closed:
            self._finish(record.id, "expired", DAEMON_ENDS)
        return self._view(record)

    def wait(self, id_: str, timeout: float | None = None) -> ApprovalView:
        """Wait until it has ended, ``timeout`` seconds at most: it may be "pending" still, and
        ``withdraw`` tells that nobody waits any more. Only "approved" allows anything."""
        with self._lock:
            parked = self._parked.get(id_)
        if parked is not None:
            left = parked.until - self._monotonic()
            whole = timeout is None or timeout >= left
            if not parked.ended.wait(max(0.0, left if timeout is None else min(timeout, left))):
                if not whole:
                    return self._view(self._get(id_))
                self._finish(id_, "expired", _LATE)
        return self._view(self._get(id_))

    def withdraw(self, id_: str) -> None:
        """Withdraw it: nobody waits for it any more; idempotent."""
        self._finish(id_, "withdrawn", "its request has gone")

    def look(self, id_: str) -> None:
        """Let who waits for it see whether it still wants to. Never blocks."""
        parked = self._parked.get(id_)
        if parked is not None:
            parked.ended.set()

    def recall(self, who: Principal, id_: str) -> ApprovalView:
        """Withdraw one's own. Raises NotFound, Forbidden (another's), Conflict (it has ended)."""
        view = self.get(who, id_)
        if not who.owns(view.principal):
            raise Forbidden(
                f"{view.principal} asked for this, and may withdraw it",
                remediation="deny it: POST .../decide, agentd approval deny",
            )
        self._finish(id_, "withdrawn", f"{who.name} has withdrawn it", by=who.name)
        view = self.get(who, id_)
        if view.state != "withdrawn" or view.decided_by != who.name:
            raise has_ended(view)
        return view

    def sandbox_ended(self, sandbox: str, note: str = SANDBOX_ENDED) -> None:
        """Drop the approvals of acts in a sandbox that has ended."""
        with self._lock:
            self._lately[sandbox] = note
            if len(self._lately) > _MAX_LATELY:
                del self._lately[next(iter(self._lately))]
            of_it = [id_ for id_, parked in self._parked.items() if parked.sandbox == sandbox]
        for id_ in of_it:
            self._finish(id_, "withdrawn", note)

    def decide(self, who: Principal, id_: str, allow: bool, note: str = "") -> ApprovalView:
        """Decide on one. Raises Forbidden, NotFound, Conflict (it has ended), InvalidInput."""
        who.require("approve")
        if len(note) > MAX_NOTE:
            raise InvalidInput(f"a note has at most {MAX_NOTE} characters", remediation="cut it")

        def work(t: Transaction) -> ApprovalRecord:
            record = t.get(ApprovalRecord, id_)
            if record is None:
                raise _unknown(id_)
            if record.principal == who.name and not self._config().self_approve:
                raise Forbidden(
                    f"{who.name} asked for this, and cannot decide on it",
                    remediation="ask another approver; approvals.self_approve would let you",
                )
            if self._is_late(record):
                raise has_ended(record, "expired")
            made = decided(record, who.name, allow, note, self._clock())
            t.put(made)
            return made

        record = self._store.write(work)
        self._unpark(id_)
        self._tell(record)
        return self._view(record)

    def ls(self, who: Principal) -> Sequence[ApprovalView]:
        """Return what ``page`` does, all of it."""
        found: list[ApprovalView] = []
        place: ApprovalPlace | None = ApprovalPlace()
        while place is not None:
            more, place = self.page(who, place, MAX_PAGE)
            found += more
        return found

    def page(
        self, who: Principal, after: ApprovalPlace, limit: int
    ) -> tuple[Sequence[ApprovalView], ApprovalPlace | None]:
        """Return what waits, oldest first, then what ended in the last hour; for who may approve
        everybody's, else one's own. At most so many, from behind a place on, and the place behind
        which there are more."""
        _require_seeing(who)
        mine = {} if who.may("approve") else {"principal": who.name}
        recent = f"apr-{max(0, int((self._clock() - LISTED_SECONDS) * 1000)):012x}"
        found = page(self._store, after, recent, limit, **mine)
        return [self._view(record) for record in found.rows], found.following

    def get(self, who: Principal, id_: str) -> ApprovalView:
        """Find one. Raises NotFound, also for another's where ``who`` may not approve."""
        _require_seeing(who)
        record = self._get(id_)
        if not who.may("approve") and not who.owns(record.principal):
            raise _unknown(id_)
        return self._view(record)

    def find(self, id_: str) -> ApprovalView | None:
        """Find anybody's; None where it is forgotten."""
        record = self._store.get(ApprovalRecord, id_)
        return None if record is None else self._view(record)

    def sweep(self, now: float) -> int:
        """End what is overdue, and forget what ended long ago: how many were forgotten."""
        with self._lock:
            overdue = [i for i, p in self._parked.items() if p.until <= self._monotonic()]
            overdue += self._unnoted
            # A clock may leap: what waits is kept, however long ago it should have ended.
            first = min((p.expires for p in self._parked.values()), default=now)
        for id_ in overdue:
            self._finish(id_, "expired", _LATE)
        gone, before = 0, min(now - KEPT_SECONDS, first)
        while count := self._store.write(
            lambda t: t.delete_before(ApprovalRecord, "expires", before, _AT_ONCE), synced=False
        ):
            gone += count
        return gone

    def close(self) -> None:
        """Tell those who wait that it has expired, and take no more. Idempotent."""
        with self._lock:
            self._closed = True
            parked = list(self._parked)
        for id_ in parked:
            with contextlib.suppress(StoreError):  # the next daemon ends it
                self._finish(id_, "expired", DAEMON_ENDS)

    def _park(self, record: ApprovalRecord, ttl: float, sandbox: str) -> None:
        most, name = self._config().max, record.principal
        with self._lock:
            if self._closed:
                raise about_to_end()
            if len(self._parked) >= most:
                raise Full(f"{most} requests wait for approval", remediation="have them decided on")
            own, others = self._of[name], len(self._parked) - self._of[name]
            if own >= MAX_OF_ONE or not has_share(own, others, most):
                raise QuotaExceeded(
                    f"{own} requests of {name} wait for approval",
                    cause=f"{MAX_OF_ONE} of one principal may, and {most} of all, of one no more"
                    " than are left to others",
                    remediation="have them decided on",
                )
            self._of[name] += 1
            until = self._monotonic() + ttl
            self._parked[record.id] = _Parked(name, until, record.expires, sandbox)

    def _unpark(self, id_: str) -> None:
        with self._lock:
            parked = self._parked.pop(id_, None)
            if parked is not None:
                self._of[parked.principal] -= 1
                if not self._of[parked.principal]:
                    del self._of[parked.principal]
        if parked is not None:
            parked.ended.set()

    def _finish(self, id_: str, state: str, note: str, by: str = "") -> None:
        """Unless it has ended already."""
        now = self._clock()

        def work(t: Transaction) -> ApprovalRecord | None:
            record = t.get(ApprovalRecord, id_)
            if record is None or record.state != PENDING:
                return None
            how = (
                {"state": "expired", "note": note if state == "expired" else _LATE}
                if self._is_late(record)  # it was told as expired already
                else {"state": state, "note": note, "decided_by": by}
            )
            made = msgspec.structs.replace(record, decided=now, **how)
            t.put(made)
            return made

        try:
            made = self._store.write(work)
        except BaseException:
            self._unnoted.add(id_)
            raise
        finally:
            self._unpark(id_)  # its place is free, and whoever waits sees what the store says
        self._unnoted.discard(id_)
        if made is not None:
            self._tell(made)

    def _tell(self, record: ApprovalRecord) -> None:
        whose = record.principal, _sandbox(record.asked)
        self._publish(EventKind.APPROVAL, *whose, approval=record.id, state=record.state)

    def _get(self, id_: str) -> ApprovalRecord:
        record = self._store.get(ApprovalRecord, id_)
        if record is None:
            raise _unknown(id_)
        return record

    def _view(self, record: ApprovalRecord) -> ApprovalView:
        state = "expired" if self._is_late(record) else record.state
        return like(ApprovalView, record, state=state)

    def _is_late(self, record: ApprovalRecord) -> bool:
        """Whether it waits, and its time is over, or its end could not be noted."""
        if record.state != PENDING:
            return False
        parked = self._parked.get(record.id)
        # One that is not there may have been decided on since the store was looked at.
        is_unnoted = record.id in self._unnoted
        return is_unnoted if parked is None else parked.until <= self._monotonic()


def _sandbox(asked: Mapping[str, Any]) -> str:
    """Return the id of the sandbox in which it was asked for, "" for one that was to be made."""
    found = str(asked.get("sandbox", ""))
    return "" if found == NEW_SANDBOX else found


def _require_seeing(who: Principal) -> None:
    if not who.may("approve"):
        who.require("read")


def _keep(t: Transaction, record: ApprovalRecord) -> None:
    """Nobody is refused for what they asked before: that goes, the oldest that has ended first."""
    for _ in range(_GO_FOR_ONE):  # no more: others wait for the store, and the next one goes on
        if not (_has_much(t, record) and _forget_oldest(t, record.principal)):
            break
    if t.measure(ApprovalRecord, "size").rows >= MAX_KEPT:
        # Whoever has the most is who fills it.
        _forget_oldest(t, str(t.heaviest(ApprovalRecord, "principal")))
    t.put(record)


def _has_much(t: Transaction, more: ApprovalRecord) -> bool:
    kept = t.measure(ApprovalRecord, "size", principal=more.principal)
    return kept.rows >= MAX_KEPT_OF_ONE or kept.total + more.size > MAX_BYTES_OF_ONE


def _forget_oldest(t: Transaction, principal: str) -> bool:
    """Forget the oldest that has ended; whether there was one."""
    oldest = [
        one
        for state in ENDED
        for one in t.least(ApprovalRecord, "created", 1, principal=principal, state=state)
    ]
    if oldest:
        t.delete(ApprovalRecord, min(oldest, key=lambda one: one.created).id)
    return bool(oldest)


def _unknown(id_: str) -> NotFound:
    return NotFound(
        f"there is no approval {id_[:64]!r}", remediation="agentd approval ls has their ids"
    )
