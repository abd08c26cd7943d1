"""Reads and writes of an SQLite file, in records.

Columns are fields of a record; what SQLite has no type for is kept as JSON.
"""

import math
import sqlite3
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

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
Value = str | int | float | bytes | None
MAX_PAGE = 1000
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
        """Return the name. Raises TypeError for a column that it does not have."""
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
    """Return a column type of SQLite, or that or None."""
    union = isinstance(annotation, types.UnionType)
    parts = typing.get_args(annotation) if union else (annotation,)
    return all(part in _PLAIN or part is type(None) for part in parts)


@cache
def table_of(kind: type[R]) -> Table[R]:
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


class Amount(NamedTuple):
    rows: int
    total: int


class View(ABC):
    """Reads records, on the connection that a subclass runs queries on."""

    @abstractmethod
    def _rows(self, sql: str, values: Sequence[Value] = ()) -> list[Any]: ...

    def get(self, kind: type[R], *key: Value) -> R | None:
        table = table_of(kind)
        rows = self._rows(table.get, key)
        return table.record(rows[0]) if rows else None

    def find(
        self, kind: type[R], *, after: tuple[Value, ...] = (), limit: int = MAX_PAGE, **equal: Value
    ) -> list[R]:
        """Return a page in the order of the keys, from behind the key ``after``, ``MAX_PAGE`` at
        most; ``equal`` names columns."""
        table = table_of(kind)
        wanted = [f"{table.column(column)} IS ?" for column in equal]
        values: list[Value] = list(equal.values())
        order = ", ".join(table.key)
        if after:
            wanted.append(f"({order}) > ({', '.join('?' * len(table.key))})")
            values.extend(after)
        where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
        sql = f"{table.select}{where} ORDER BY {order} LIMIT ?"
        rows = self._rows(sql, (*values, max(0, min(limit, MAX_PAGE))))
        return [table.record(row) for row in rows]

    def measure(self, kind: type[StoreRecord], column: str, **equal: Value) -> Amount:
        """Return how many rows there are, and the sum of one of their columns."""
        table = table_of(kind)
        where = " AND ".join(f"{table.column(name)} IS ?" for name in equal) or "1"
        total = f"COALESCE(SUM({table.column(column)}), 0)"
        sql = f"SELECT COUNT(*), {total} FROM {table.name} WHERE {where}"  # noqa: S608
        return Amount(*self._rows(sql, tuple(equal.values()))[0])

    def least(
        self, kind: type[R], column: str, limit: int, *, positive: str = "", **equal: Value
    ) -> list[R]:
        """Return the rows with the least values of a column, without those that are infinite;
        ``positive`` is another column, which must be."""
        table = table_of(kind)
        column = table.column(column)
        wanted = [f"{table.column(name)} IS ?" for name in equal] + [f"{column} < ?"]
        if positive:
            wanted.append(f"{table.column(positive)} > 0")
        sql = f"{table.select} WHERE {' AND '.join(wanted)} ORDER BY {column} LIMIT ?"
        rows = self._rows(sql, (*equal.values(), math.inf, limit))
        return [table.record(row) for row in rows]

    def heaviest(self, kind: type[StoreRecord], column: str, weight: str = "") -> Value:
        """Return the value of ``column`` that most rows have, or whose rows weigh the most; None
        without rows."""
        table = table_of(kind)
        group = table.column(column)
        by = f"SUM({table.column(weight)})" if weight else "COUNT(*)"
        sql = f"SELECT {group} FROM {table.name} GROUP BY {group} ORDER BY {by} DESC LIMIT 1"  # noqa: S608
        rows = self._rows(sql)
        return rows[0][0] if rows else None


class Transaction(View):
    """Sees what it wrote; valid only within the function that it was given to."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def _rows(self, sql: str, values: Sequence[Value] = ()) -> list[Any]:
        return self._connection.execute(sql, values).fetchall()

    def put(self, record: StoreRecord) -> None:
        """Insert it, or replace what has its key."""
        table = table_of(type(record))
        self._connection.execute(table.put, table.row(record))

    def delete(self, kind: type[StoreRecord], *key: Value) -> bool:
        """Return whether it was there."""
        return self._connection.execute(table_of(kind).delete, key).rowcount > 0

    def delete_before(self, kind: type[StoreRecord], column: str, value: float, limit: int) -> int:
        """Delete rows whose column is less, ``limit`` at most; return how many."""
        return self._connection.execute(_delete_before(kind, column), (value, limit)).rowcount

    def take_before(self, kind: type[R], column: str, value: float, limit: int) -> list[R]:
        """Delete as ``delete_before``, and return the rows."""
        table = table_of(kind)
        sql = f"{_delete_before(kind, column)} RETURNING {', '.join(table.columns)}"
        return [table.record(row) for row in self._rows(sql, (value, limit))]


def _delete_before(kind: type[StoreRecord], column: str) -> str:
    table = table_of(kind)
    key = ", ".join(table.key)
    old = f"SELECT {key} FROM {table.name} WHERE {table.column(column)} < ? LIMIT ?"  # noqa: S608
    return f"DELETE FROM {table.name} WHERE ({key}) IN ({old})"  # noqa: S608
