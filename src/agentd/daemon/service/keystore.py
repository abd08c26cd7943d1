"""API keys in the daemon's store. They are few and read with every request: all are in memory."""

import threading
from collections.abc import Iterable

import msgspec

from agentd.auth.keys import KeyRecord, KeyService, KeyStore
from agentd.daemon.config.schema import Config
from agentd.daemon.store.records import ApiKeyRecord
from agentd.daemon.store.sqlite import SqliteStore

# Ended keys are told of for so long, in seconds.
_KEPT = 90 * 86400.0


def key_service(config: Config, store: KeyStore) -> KeyService:
    keys = config.auth.keys
    return KeyService(store, default_ttl=keys.default_ttl, max_ttl=keys.max_ttl)


class StoredKeys:
    """Durable when ``add``, ``revoke`` and ``remove`` return; thread-safe."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._keys = {record.id: _from_row(record) for record in _all(store)}

    def add(self, record: KeyRecord) -> None:
        self._put(record)

    def get(self, key_id: str) -> KeyRecord | None:
        with self._lock:
            return self._keys.get(key_id)

    def list(self) -> Iterable[KeyRecord]:
        with self._lock:
            return list(self._keys.values())

    def revoke(self, key_id: str, when: float) -> None:
        record = self.get(key_id)
        if record is not None and record.revoked is None:
            self._put(msgspec.structs.replace(record, revoked=when))

    def touch(self, key_id: str, when: float) -> None:
        """Note it in memory alone: a write with every request would cost more than it tells."""
        with self._lock:
            record = self._keys.get(key_id)
            if record is not None:
                self._keys[key_id] = msgspec.structs.replace(record, last_used=when)

    def forget(self, now: float) -> int:
        """Delete those that ended long ago: how many."""
        gone = [record.id for record in self.list() if _ended(record, now) > _KEPT]
        for key_id in gone:
            self.remove(key_id)
        return len(gone)

    def remove(self, key_id: str) -> None:
        self._store.write(lambda transaction: transaction.delete(ApiKeyRecord, key_id))
        with self._lock:
            self._keys.pop(key_id, None)

    def _put(self, record: KeyRecord) -> None:
        row = _to_row(record)
        self._store.write(lambda transaction: transaction.put(row))
        with self._lock:
            self._keys[record.id] = record


def _ended(record: KeyRecord, now: float) -> float:
    """Return how long it has been of no use; below zero while it is."""
    ends = [moment for moment in (record.revoked, record.expires) if moment is not None]
    return now - min(ends) if ends else -1.0


def _all(store: SqliteStore) -> list[ApiKeyRecord]:
    found: list[ApiKeyRecord] = []
    while page := store.find(ApiKeyRecord, after=(found[-1].id,) if found else ()):
        found += page
    return found


def _to_row(record: KeyRecord) -> ApiKeyRecord:
    fields = msgspec.structs.asdict(record)
    return ApiKeyRecord(hash=fields.pop("digest"), **fields)


def _from_row(row: ApiKeyRecord) -> KeyRecord:
    fields = msgspec.structs.asdict(row)
    return KeyRecord(digest=fields.pop("hash"), **fields)
