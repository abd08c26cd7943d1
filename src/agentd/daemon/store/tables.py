"""Which record is which row: columns are fields; what SQLite has no type for is kept as JSON."""

import types
import typing
from functools import cache
from typing import Any, Generic, TypeVar

import msgspec

from agentd.daemon.store.errors import StoreError
from agentd.daemon.store.records import (
    ApiKeyRecord,
    ApprovalRecord,
    IdempotencyRecord,
    NonceRecord,
    ProcessRecord,
    ReplayMarkRecord,
    SandboxRecord,
    StoreRecord,
)
from agentd.model import typed

R = TypeVar("R", bound=StoreRecord)
_PLAIN = (str, int, float, bytes)


class Table(Generic[R]):
    def __init__(self, name: str, kind: type[R], key: tuple[str, ...]) -> None:
        self.name = name
        self.kind = kind
        self.key = key
        fields = msgspec.structs.fields(kind)
        self.columns = tuple(field.name for field in fields)
        self._decoders = tuple(
            None if _is_plain(field.type) else typed.decoder(field.type) for field in fields
        )
        marks = ", ".join("?" * len(self.columns))
        same_key = " AND ".join(f"{column} = ?" for column in key)
        listed = ", ".join(self.columns)
        # Names come from the classes above alone: nothing a caller says becomes SQL.
        self.select = f"SELECT {listed} FROM {name}"  # noqa: S608
        self.get = f"{self.select} WHERE {same_key}"
        self.put = f"INSERT OR REPLACE INTO {name} ({listed}) VALUES ({marks})"  # noqa: S608
        self.delete = f"DELETE FROM {name} WHERE {same_key}"  # noqa: S608

    def column(self, name: str) -> str:
        """Raises TypeError for a column that it does not have."""
        if name not in self.columns:
            raise TypeError(f"{self.name} has no column {name!r}")
        return name

    def row(self, record: R) -> list[object]:
        return [
            value if decoder is None else msgspec.json.encode(value).decode()
            for value, decoder in zip(
                [getattr(record, name) for name in self.columns], self._decoders, strict=True
            )
        ]

    def record(self, row: tuple[Any, ...]) -> R:
        try:
            values = [
                value if decoder is None else decoder.decode(value)
                for value, decoder in zip(row, self._decoders, strict=True)
            ]
        except msgspec.DecodeError as error:
            key = "/".join(str(row[self.columns.index(name)]) for name in self.key)
            raise StoreError(
                f"the store's row {self.name} {key} is unreadable", cause=str(error)
            ) from error
        return self.kind(**dict(zip(self.columns, values, strict=True)))


def _is_plain(annotation: Any) -> bool:
    """A column type of SQLite, or that or None."""
    union = isinstance(annotation, types.UnionType)
    parts = typing.get_args(annotation) if union else (annotation,)
    return all(part in _PLAIN or part is type(None) for part in parts)


@cache
def of(kind: type[R]) -> Table[R]:
    name, key = _TABLES[kind]
    return Table(name, kind, key)


_TABLES: dict[type[StoreRecord], tuple[str, tuple[str, ...]]] = {
    SandboxRecord: ("sandboxes", ("id",)),
    ProcessRecord: ("processes", ("id",)),
    ApiKeyRecord: ("api_keys", ("id",)),
    IdempotencyRecord: ("idempotency", ("principal", "key")),
    NonceRecord: ("nonces", ("key", "nonce")),
    ReplayMarkRecord: ("replay_marks", ("id",)),
    ApprovalRecord: ("approvals", ("id",)),
}
