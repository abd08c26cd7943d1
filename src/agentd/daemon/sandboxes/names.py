"""The names that principals give their sandboxes: each once, while its sandbox lives."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from agentd.daemon.store.records import SandboxRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model import context
from agentd.model.errors import Conflict, InvalidInput

_NAME = re.compile(r"(?!sbx-)[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
# How often who waits for a name looks whether its client has gone.
_LOOK_SECONDS = 1.0


class Names:
    """Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ids: dict[tuple[str, str], str] = {}
        self._making: set[tuple[str, str]] = set()

    def find(self, owner: str, name: str) -> str:
        """The id of the sandbox that ``owner`` calls so, or ""."""
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
    def making(self, owner: str, name: str, *, wait: bool) -> Iterator[None]:
        """Nobody else makes one of that name within the block; ``wait`` until nobody does.

        Raises InvalidInput for what is no name, Conflict.
        """
        check_name(name)
        key = owner, name
        with self._changed:
            while key in self._making:
                if not wait or context.waiting_client().is_set:
                    raise taken(name)
                self._changed.wait(_LOOK_SECONDS)
            self._making.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._making.discard(key)
                self._changed.notify_all()


def recalled(store: SqliteStore, owner: str, id_: str) -> SandboxRecord | None:
    """Return what the store knows by that id, or of the last sandbox that ``owner`` called so."""
    found = store.get(SandboxRecord, id_)
    if found is not None or not _NAME.fullmatch(id_):
        return found
    after: tuple[str, ...] = ()
    while page := store.find(SandboxRecord, after=after, principal=owner, name=id_):
        last = max(page, key=lambda record: record.created)
        if found is None or last.created > found.created:
            found = last
        after = (page[-1].id,)
    return found


def check_name(name: str) -> None:
    """Raises InvalidInput."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name[:64]!r} is no name of a sandbox",
            remediation="give up to 63 letters, digits, dots, underscores and hyphens, a letter or "
            "digit first; 'sbx-' begins ids",
        )


def taken(name: str) -> Conflict:
    return Conflict(
        f"you have a sandbox {name!r} already",
        remediation="use that one (get_or_create), end it, or take another name",
    )
