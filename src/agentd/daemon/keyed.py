"""The rows of Idempotency-Keys: how many and how large they may be, and which are forgotten.

All of it but ``sweep`` is for the store's turn: it is never run twice at once.
"""

import math
from collections.abc import Callable
from typing import Any

import msgspec

from agentd.daemon.store.errors import StoreError
from agentd.daemon.store.records import IdempotencyRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.daemon.store.view import Amount, Transaction
from agentd.model.answer import Answer

NEW = "new"  # claimed just now; never stored
_SWEEP = 1000  # rows in one transaction
_AT_ONCE = 64  # rows that are forgotten where the store is full
_MAX_PRINCIPALS = 10_000  # whose use is remembered; of others it is counted again


class KeyedBounds(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of a principal; ``total_`` those of all. ``ttl`` is in seconds, after a request's
    end."""

    ttl: float = 3600.0
    keys: int = 10_000
    bytes: int = 64 << 20  # of answers
    total_keys: int = 200_000
    total_bytes: int = 512 << 20


class Keyed:
    def __init__(
        self,
        store: SqliteStore,
        bounds: KeyedBounds,
        clock: Callable[[], float],
        past: Callable[[], float],
    ) -> None:
        """``past`` is the clock by which keys have expired: one that may be late."""
        self._store = store
        self.bounds = bounds
        self._clock = clock
        self._past = past
        self._use: dict[str, Amount] = {}  # of a principal: its keys, the bytes of its answers
        self._all: Amount | None = None  # None: to be counted again
        while self.write(self._interrupt):
            pass

    def write(self, work: Callable[[Transaction], Any], *, synced: bool = True) -> Any:
        """Write as the store does; what is undone is counted again."""
        try:
            return self._store.write(work, synced=synced)
        except StoreError:
            self._use.clear()
            self._all = None
            raise

    def sweep(self) -> int:
        """Forget keys that have expired: how many."""
        total = 0
        while gone := self.write(self._delete_expired, synced=False):
            total += gone
        return total

    def new(self, principal: str, key: str, digest: str) -> IdempotencyRecord:
        return IdempotencyRecord(
            principal=principal,
            key=key,
            digest=digest,
            state=NEW,
            created=self._clock(),
            expires=math.inf,
        )

    def has_expired(self, record: IdempotencyRecord) -> bool:
        return record.expires <= self._past()

    # -- in a transaction --

    def claim(
        self, transaction: Transaction, principal: str, key: str, digest: str
    ) -> IdempotencyRecord | None:
        """Return the record that has the key, or a new one that has it now; None if full."""
        found = transaction.get(IdempotencyRecord, principal, key)
        if found is not None and not self.has_expired(found):
            return found
        if found is not None:
            self.release(transaction, found)
        if not self.make_room(transaction, principal):
            return None
        record = self.new(principal, key, digest)
        transaction.put(msgspec.structs.replace(record, state="started"))
        self.count(principal, 1, 0)
        return record

    def end(
        self,
        transaction: Transaction,
        record: IdempotencyRecord,
        state: str,
        answer: Answer | None,
        body: bytes,
    ) -> None:
        ended = msgspec.structs.replace(
            record, state=state, expires=self._clock() + self.bounds.ttl
        )
        if answer is not None:
            size = len(answer.body)
            kept = bool(body) and self._make_space(transaction, record.principal, size)
            ended = msgspec.structs.replace(
                ended,
                state=state if kept else "dropped",
                status=answer.status,
                headers=answer.headers if kept else {},
                body=body if kept else b"",
                size=size if kept else 0,
            )
        transaction.put(ended)
        self.count(record.principal, 0, ended.size)

    def make_room(self, transaction: Transaction, principal: str) -> bool:
        """Make room for one more key; False where all those there are run."""
        bounds = self.bounds
        over = self._used(transaction, principal).rows + 1 - bounds.keys
        if over > 0 and self._forget_oldest(transaction, principal, over) < over:
            return False
        if self._totals(transaction).rows < bounds.total_keys:
            return True
        # Whoever has the most is who fills it.
        most = str(transaction.heaviest(IdempotencyRecord, "principal"))
        return self._forget_oldest(transaction, most, _AT_ONCE) > 0

    def _make_space(self, transaction: Transaction, principal: str, size: int) -> bool:
        """For an answer of so many bytes; False where it can never fit. That the older requests
        were done is still known."""
        bounds = self.bounds
        if size > min(bounds.bytes, bounds.total_bytes):
            return False
        while self._used(transaction, principal).total + size > bounds.bytes:
            if not self._drop_oldest(transaction, principal):
                return False
        while self._totals(transaction).total + size > bounds.total_bytes:
            most = transaction.heaviest(IdempotencyRecord, "principal", "size")
            if not self._drop_oldest(transaction, str(most)):
                return False
        return True

    def _forget_oldest(self, transaction: Transaction, principal: str, count: int) -> int:
        found = transaction.least(IdempotencyRecord, "expires", count, principal=principal)
        for record in found:
            self.release(transaction, record)
        return len(found)

    def _drop_oldest(self, transaction: Transaction, principal: str) -> int:
        found = transaction.least(
            IdempotencyRecord, "expires", _AT_ONCE, positive="size", principal=principal
        )
        for record in found:
            gone: dict[str, Any] = {"state": "dropped", "headers": {}, "body": b"", "size": 0}
            transaction.put(msgspec.structs.replace(record, **gone))
            self.count(principal, 0, -record.size)
        return len(found)

    def _interrupt(self, transaction: Transaction) -> int:
        """A page of what nobody runs any more."""
        found = transaction.find(IdempotencyRecord, state="started")
        expires = self._clock() + self.bounds.ttl
        for record in found:
            transaction.put(msgspec.structs.replace(record, state="interrupted", expires=expires))
        return len(found)

    def release(self, transaction: Transaction, record: IdempotencyRecord) -> None:
        if transaction.delete(IdempotencyRecord, record.principal, record.key):
            self.count(record.principal, -1, -record.size)

    def _delete_expired(self, transaction: Transaction) -> int:
        gone = transaction.delete_before(IdempotencyRecord, "expires", self._past(), _SWEEP)
        if gone:
            self._use.clear()
            self._all = None
        return gone

    def _used(self, transaction: Transaction, principal: str) -> Amount:
        if principal not in self._use:
            if len(self._use) >= _MAX_PRINCIPALS:
                self._use.clear()
            self._use[principal] = transaction.measure(
                IdempotencyRecord, "size", principal=principal
            )
        return self._use[principal]

    def _totals(self, transaction: Transaction) -> Amount:
        if self._all is None:
            self._all = transaction.measure(IdempotencyRecord, "size")
        return self._all

    def count(self, principal: str, keys: int, size: int) -> None:
        if self._all is not None:
            self._all = Amount(self._all.rows + keys, self._all.total + size)
        if principal in self._use:
            had = self._use[principal]
            self._use[principal] = Amount(had.rows + keys, had.total + size)
