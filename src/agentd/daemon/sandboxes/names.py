"""The names that principals give their sandboxes: each once, while its sandbox lives."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from agentd.daemon.store.records import SandboxRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model import context
from agentd.model.errors import Conflict, Full
from agentd.model.labels import SANDBOX_NAME, check_name

# How often who waits for a name looks whether its client has gone.
_LOOK_SECONDS = 1.0
MAX_WAITING_OF_ONE = 128  # each in a thread of its own


class Names:
    """Knows whose sandbox is called what. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ids: dict[tuple[str, str], str] = {}
        self._making: set[tuple[str, str]] = set()
        self._waiting: Counter[str] = Counter()  # by owner

    def find(self, owner: str, name: str) -> str:
        """Find the id of the sandbox that ``owner`` calls so, or ""."""
        with self._changed:
            return self._ids.get((owner, name), "")

    def keep(self, owner: str, name: str, id_: str) -> None:
        if name:
            with self._changed:
                self._ids[owner, name] = id_

    def forget(self, owner: str, name: str, id_: str) -> None:
        with self._changed:
            if self._ids.get((owner, name)) == id_:
                del self._ids[owner, name]

    @contextmanager
    def making(self, owner: str, name: str, *, wait: float = 0.0) -> Iterator[None]:
        """Let nobody else make one of that name within the block; for up to ``wait`` seconds it is
        waited until nobody does.

        Raises InvalidInput for what is no name, Conflict, Full.
        """
        check_name(name)
        key = owner, name
        with self._changed:
            if key in self._making:
                self._wait(key, wait)
            self._making.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._making.discard(key)
                self._changed.notify_all()

    def _wait(self, key: tuple[str, str], wait: float) -> None:
        """Wait until nobody makes one of that name; under the lock."""
        owner, name = key
        if self._waiting[owner] >= MAX_WAITING_OF_ONE:
            raise Full(
                f"{MAX_WAITING_OF_ONE} requests of {owner} wait for names",
                remediation="come back later",
                retry_after=5.0,
            )
        end = time.monotonic() + wait
        self._waiting[owner] += 1
        try:
            while key in self._making:
                left = end - time.monotonic()
                if left <= 0 or context.waiting_client().is_set:
                    raise taken(name) if wait <= 0 else being_made(name, wait)
                self._changed.wait(min(left, _LOOK_SECONDS))
        finally:
            self._waiting[owner] -= 1
            if not self._waiting[owner]:
                del self._waiting[owner]


def recalled(store: SqliteStore, owner: str, id_: str) -> SandboxRecord | None:
    """Return what the store knows by that id, or of the last sandbox that ``owner`` called so."""
    found = store.get(SandboxRecord, id_)
    if found is not None or not SANDBOX_NAME.fullmatch(id_):
        return found
    after: tuple[str, ...] = ()
    while page := store.find(SandboxRecord, after=after, principal=owner, name=id_):
        last = max(page, key=lambda record: record.created)
        if found is None or last.created > found.created:
            found = last
        after = (page[-1].id,)
    return found


def being_made(name: str, wait: float) -> Conflict:
    return Conflict(
        f"your sandbox {name!r} is still being made",
        cause=f"it was waited for {wait:g} s",
        remediation="ask again, or give a longer wait",
    )


def taken(name: str) -> Conflict:
    return Conflict(
        f"you have a sandbox {name!r} already",
        remediation="use that one (in the SDK by get_or_create), end it, or take another name",
    )
