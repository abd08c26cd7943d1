"""Which signed requests were used, in the daemon's store: none is used twice, whatever happens.

A nonce is written before its request does anything, and without waiting for the disk: the death of
the daemon does not undo that, the death of the machine may. So the store also has a **ceiling**,
synced before any request at or beyond it is let in, and raised by half a minute each time. A daemon
that comes up after the machine went down without warning cannot know which of the last nonces were
lost: it refuses every request issued below that ceiling, so all that were let in, and those of the
next minute at most (the half one, and how far a signer's clock may be ahead).

When nonces are forgotten, the **floor** rises above them in the same transaction, and what was
issued below it is refused: also when the clock is set back, or max_age is raised, afterwards.

All this compares instants that requests name, so no clock of ours need be right. What it cannot
see is a disk, or a whole machine, that was rolled back to an earlier moment while it ran.
"""

import contextlib
import os
import threading
from functools import partial

import msgspec

from agentd.auth.signing import RequestStale
from agentd.daemon.store.errors import StoreError
from agentd.daemon.store.records import NonceRecord, ReplayMarkRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.daemon.store.view import Transaction
from agentd.model.errors import Full
from agentd.model.holds import has_share

MAX_OF_ONE = 200_000  # nonces of one key, so that none fills the store
MAX_ALL = 1_000_000
WINDOW_SECONDS = 30.0  # between two syncs, and what a loss of power costs
_AT_ONCE = 500  # rows in one transaction: others wait for it
_MARK = "requests"
_MAX_COUNTED = 10_000


class StoredNonces:
    """Remembers them. Thread-safe. ``now`` is the wall clock's, for a store that is new."""

    def __init__(self, store: SqliteStore, now: float, boot: str | None = None) -> None:
        self._store = store
        self._boot = boot or _boot_id()
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}  # of each key; touched in transactions alone
        mark = store.write(partial(_open, now=now, boot=self._boot))
        self._ceiling = mark.ceiling
        self._all = store.measure(NonceRecord, "issued").rows

    def first_use(self, key: str, nonce: str, issued: float) -> bool:
        record = NonceRecord(key=key, nonce=nonce, issued=issued)
        if issued < self._ceiling:
            return self._store.write(partial(self._use, record), synced=False)
        new = self._store.write(partial(self._use, record, raised=issued + WINDOW_SECONDS))
        with self._lock:  # only now is it on disk
            self._ceiling = max(self._ceiling, issued + WINDOW_SECONDS)
        return new

    def forget(self, before: float) -> int:
        """Delete those of requests issued before, which must be stale by now: how many."""
        gone = 0
        while count := self._store.write(partial(self._forget, before), synced=False):
            gone += count
        self._all = self._store.measure(NonceRecord, "issued").rows  # a write may have failed
        return gone

    def close(self) -> None:
        """Write all to disk: the next daemon need not doubt it then. None is used after
        that."""
        with contextlib.suppress(StoreError):  # then the next one doubts it
            self._store.write(lambda t: t.put(msgspec.structs.replace(_mark(t), boot="")))

    # -- in a transaction --

    def _use(self, record: NonceRecord, t: Transaction, raised: float = 0.0) -> bool:
        mark = _mark(t)
        if not mark.boot:
            raise StoreError("the daemon is about to end", remediation="ask the next one")
        if raised > mark.ceiling:
            t.put(msgspec.structs.replace(mark, ceiling=raised))
        if record.issued < mark.floor:
            raise _too_old()
        if t.get(NonceRecord, record.key, record.nonce) is not None:
            return False
        self._count(t, record.key)
        t.put(record)
        return True

    def _count(self, t: Transaction, key: str) -> None:
        if key not in self._counts:
            if len(self._counts) >= _MAX_COUNTED:
                self._counts.clear()
            self._counts[key] = t.measure(NonceRecord, "issued", key=key).rows
        own = self._counts[key]
        if own >= MAX_OF_ONE or not has_share(own, self._all - own, MAX_ALL):
            raise Full(
                f"{self._counts[key]} signed requests of this key are remembered",
                remediation="sign fewer in that time, or lower auth.signed.max_age",
                retry_after=60.0,
            )
        self._counts[key] += 1
        self._all += 1

    def _forget(self, before: float, t: Transaction) -> int:
        mark = _mark(t)
        gone = t.delete_before(NonceRecord, "issued", before, _AT_ONCE)
        # No further than what was let in reaches: the clock may have leapt ahead for a moment.
        floor = max(mark.floor, min(before, mark.ceiling))
        if gone and floor > mark.floor:
            t.put(msgspec.structs.replace(mark, floor=floor))
        self._all -= gone
        self._counts.clear()
        return gone


def _open(t: Transaction, now: float, boot: str) -> ReplayMarkRecord:
    mark = t.get(ReplayMarkRecord, _MARK)
    if mark is None:
        # A new store may take the place of one that knew more.
        mark = ReplayMarkRecord(id=_MARK, floor=now, ceiling=now, boot=boot)
    elif mark.boot not in ("", boot):
        mark = msgspec.structs.replace(mark, floor=max(mark.floor, mark.ceiling))
    mark = msgspec.structs.replace(mark, boot=boot)
    t.put(mark)
    return mark


def _mark(t: Transaction) -> ReplayMarkRecord:
    mark = t.get(ReplayMarkRecord, _MARK)
    if mark is None:
        raise LookupError("the store lost its replay mark")
    return mark


def _boot_id() -> str:
    """Another after each start of the machine; what is written and not synced outlives none."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read(64).strip()
    except OSError:
        return os.urandom(16).hex()  # no other's: then the worst is assumed


def _too_old() -> RequestStale:
    return RequestStale(
        "the request was signed too long ago",
        cause="what was used then is forgotten, or was lost when the machine went down",
        remediation="sign it anew, and set the clocks",
    )
