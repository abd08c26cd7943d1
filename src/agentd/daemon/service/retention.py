"""What has ended is kept for a while, to be asked about, and then forgotten."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence

from agentd.daemon.config.schema import Config, JournalSettings
from agentd.daemon.service.keystore import StoredKeys
from agentd.daemon.store.records import ProcessRecord, SandboxRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model.late_clock import LateClock
from agentd.sandbox.journal.journals import Journals

_AT_ONCE = 500  # rows in one transaction: others wait for it
_TICK_SECONDS = 60.0


def journals_of(settings: JournalSettings, store: SqliteStore) -> Journals:
    """Makes the journals in the store's folder; each principal has a share of their bytes."""

    def owner(sandbox: str) -> str:
        record = store.get(SandboxRecord, sandbox)
        return record.principal if record else ""  # of all that are forgotten

    return Journals(
        os.path.join(store.folder, "journals"),
        memory=int(settings.memory),
        max_bytes=int(settings.process),
        total_bytes=int(settings.total),
        owner=owner,
    )


class Retention:
    """Forgets what has ended; called now and then by one thread. ``more`` get the time, forget what
    is theirs in steps that others need not wait long for, and tell how much it was."""

    def __init__(
        self,
        config: Callable[[], Config],
        store: SqliteStore,
        journals: Journals,
        keys: StoredKeys,
        clock: Callable[[], float] | None = None,
        more: Sequence[Callable[[float], int]] = (),
    ) -> None:
        self._config = config
        self._store = store
        self._journals = journals
        self._keys = keys
        self._clock = clock or LateClock(lambda: float(config().journal.keep))
        self._more = more
        self._next = 0.0

    def tick(self) -> None:
        """Sweep, if it is time."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _TICK_SECONDS
            self.sweep()

    def sweep(self) -> int:
        """Forget commands and sandboxes that ended longer ago than is kept: how many."""
        oldest = self._clock() - float(self._config().journal.keep)
        gone = 0
        while ended := self._store.write(
            lambda t: t.take_before(ProcessRecord, "ended", oldest, _AT_ONCE)
        ):
            for record in ended:
                with contextlib.suppress(OSError):
                    self._journals.remove(record.journal or f"{record.sandbox}/{record.id}")
            gone += len(ended)
        while count := self._store.write(
            lambda t: t.delete_before(SandboxRecord, "ended", oldest, _AT_ONCE)
        ):
            gone += count
        self._keys.forget(self._clock())
        return gone + sum(forget(self._clock()) for forget in self._more)
