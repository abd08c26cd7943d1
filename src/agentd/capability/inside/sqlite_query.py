"""Runs in the sandbox: one statement that only reads, over a database that stays as it is.

In: {root, path, sql, parameters, max_rows, max_bytes, timeout}; ``path`` is absolute, ``timeout``
in seconds. Out: what ``builtin/sqlite_query.py`` decodes.

SQL and database are both untrusted. What stands against them: the file is opened read-only; an
authorizer allows reading and known functions, and nothing else; a schema may use no function that
has effects; memory, lengths and time are bounded; and all that is behind the sandbox's wall.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import re
import resource
import sqlite3
import time
from typing import Any
from urllib.parse import quote

from agentd.capability.inside.common import Failed, answer, open_file
from agentd.capability.inside.sqlite_functions import ALLOWED

HEAP = 256 << 20  # bytes that SQLite may hold
ADDRESS_SPACE = 1 << 30  # bytes: the rows as Python values, too
MAX_LENGTH = 16 << 20  # bytes of one value
_DEFENSIVE = 1010  # SQLITE_DBCONFIG_DEFENSIVE
_STEPS = 10_000  # of SQLite's machine between two looks at the clock
_BUSY = 5.0  # seconds that a writer is waited for
_ACTIONS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
# What SQLite asks for by itself: FTS5, whether another process has changed the database; FTS3 and
# FTS4, the size of a page; 3.40, each virtual table as its columns are declared. A statement
# that says so itself gets no further: SQLite lets nobody change the schema table.
_BY_ITSELF = {
    (sqlite3.SQLITE_PRAGMA, "data_version", None),
    (sqlite3.SQLITE_PRAGMA, "page_size", None),
    *(
        (sqlite3.SQLITE_UPDATE, "sqlite_master", column)
        for column in ("type", "name", "tbl_name", "rootpage", "sql")
    ),
}
_OTHERS = {
    *("SQLITE_ANALYZE", "SQLITE_ATTACH", "SQLITE_DELETE", "SQLITE_DETACH", "SQLITE_INSERT"),
    *("SQLITE_PRAGMA", "SQLITE_REINDEX", "SQLITE_SAVEPOINT", "SQLITE_TRANSACTION"),
    "SQLITE_UPDATE",
}
_NAMES = {
    getattr(sqlite3, name): name[len("SQLITE_") :].lower().replace("_", " ")
    for name in dir(sqlite3)
    if name.startswith(("SQLITE_ALTER", "SQLITE_CREATE", "SQLITE_DROP")) or name in _OTHERS
}
_PRAGMAS = (
    "trusted_schema=OFF",
    "query_only=ON",
    "cell_size_check=ON",
    "mmap_size=0",  # a file that is cut short under a mapping kills the process
    "temp_store=MEMORY",  # what is sorted counts for the heap, and is on no disk
    f"hard_heap_limit={HEAP}",
)
_LIMITS = {
    "LENGTH": MAX_LENGTH,
    "SQL_LENGTH": 1 << 20,
    "EXPR_DEPTH": 200,
    "COMPOUND_SELECT": 50,
    "ATTACHED": 0,
    "LIKE_PATTERN_LENGTH": 1000,
    "TRIGGER_DEPTH": 0,
    "WORKER_THREADS": 0,
}
# What SQLite says, from its beginning: a name of the caller's may stand in it further on, as in
# "no such column: locked". -> a code, and a fix.
_ERRORS = (
    ("file is not a database", "not_a_database", "it is encrypted, or something else"),
    (r"table \S+ may not be modified", "not_allowed", "it can only read"),
    ("database disk image is malformed", "corrupt", "recover it with the sqlite3 program"),
    ("malformed database schema", "corrupt", "recover it with the sqlite3 program"),
    ("database( table| schema)? is locked", "busy", "a writer holds it: ask again"),
    ("string or blob too big", "too_large", f"a value has at most {MAX_LENGTH} bytes"),
    ("attempt to write a readonly", "needs_recovery", "a writer was interrupted: write to it once"),
    ("disk I/O error", "io_error", "it may be damaged"),
    ("You can only execute one", "many_statements", "ask one at a time"),
)


class Guard:
    """``denied``: what the authorizer refused first; ``late``: the time was over."""

    def __init__(self, timeout: float) -> None:
        self.denied = ""
        self.late = False
        self._end = time.monotonic() + timeout

    def authorize(self, action: int, first: str | None, second: str | None, *_: object) -> int:
        if action in _ACTIONS or (action, first, second) in _BY_ITSELF:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION:
            if (second or "").lower() in ALLOWED:
                return sqlite3.SQLITE_OK
            self.denied = self.denied or f"the function {second}"
        self.denied = self.denied or _NAMES.get(action, f"action {action}")
        return sqlite3.SQLITE_DENY

    def tick(self) -> int:
        self.late = self.late or time.monotonic() >= self._end
        return int(self.late)


def work(ask: dict[str, Any]) -> dict[str, Any]:
    with contextlib.suppress(ValueError, OSError):  # a lower one holds already
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    guard = Guard(ask["timeout"])
    uri, immutable = _uri(ask["root"], ask["path"])
    try:
        with contextlib.closing(_connect(uri, ask["timeout"])) as connection:
            _confine(connection, guard)
            return {**_rows(connection, ask), "immutable": immutable}
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise _failed(error, guard, uri) from None
    except UnicodeDecodeError:
        raise Failed("corrupt", "a name in the database is not UTF-8") from None


def _uri(root: str, path: str) -> tuple[str, bool]:
    """(how to open it, whether as a file that does not change)."""
    fd = open_file(root, path)
    try:
        head = os.pread(fd, 100, 0)
    finally:
        os.close(fd)
    if head[:16] != b"SQLite format 3\0":
        raise Failed("not_a_database", f"{path} is no SQLite 3 database")
    uri = f"file:{quote(path)}?mode=ro"
    if head[18:20] != b"\2\2" or os.access(os.path.dirname(path), os.W_OK):
        return uri, False
    # WAL, where no file can be made beside it. Without a log no writer has it open, and all of it
    # is in the file; with one, the log is needed, and SQLite reads it if its index is there.
    log = f"{path}-wal"
    if os.path.exists(log) and os.path.getsize(log):
        return f"{uri}#wal", False
    return f"{uri}&immutable=1", True


def _connect(uri: str, timeout: float) -> sqlite3.Connection:
    busy = min(_BUSY, timeout)
    return sqlite3.connect(uri.partition("#")[0], uri=True, timeout=busy, isolation_level=None)


def _confine(connection: sqlite3.Connection, guard: Guard) -> None:
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()
    for name, most in _LIMITS.items() if hasattr(connection, "setlimit") else ():
        connection.setlimit(getattr(sqlite3, f"SQLITE_LIMIT_{name}"), most)
    if hasattr(connection, "setconfig"):  # Python 3.12
        connection.setconfig(_DEFENSIVE, True)
    connection.text_factory = _text
    connection.set_progress_handler(guard.tick, _STEPS)
    connection.set_authorizer(guard.authorize)


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _rows(connection: sqlite3.Connection, ask: dict[str, Any]) -> dict[str, Any]:
    if "\0" in ask["sql"]:
        raise Failed("sql_error", "the SQL holds a NUL", "leave it out, or give it as a parameter")
    try:
        cursor = connection.execute(ask["sql"], _bound(ask["parameters"]))
    except OverflowError:
        raise Failed("bad_parameter", "an integer has over 64 bits") from None
    if cursor.description is None:
        raise Failed("not_a_query", "the SQL holds no query", "write a SELECT")
    columns = [column[0] for column in cursor.description]
    rows: list[Any] = []
    size, truncated = len(json.dumps(columns)), ""
    for row in cursor:
        if len(rows) >= ask["max_rows"]:
            truncated = "rows"
            break
        shown = [_shown(value) for value in row]
        size += len(json.dumps(shown)) + 2
        if size > ask["max_bytes"]:
            truncated = "bytes"
            break
        rows.append(shown)
    return {"columns": columns, "rows": rows, "truncated": truncated}


def _shown(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"real": str(value)}
    return value


def _bound(parameters: Any) -> Any:
    if isinstance(parameters, dict):
        return {name: _value(value) for name, value in parameters.items()}
    return [_value(value) for value in parameters]


def _value(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    try:
        return base64.b64decode(value["base64"], validate=True)
    except ValueError:
        raise Failed("bad_parameter", "a parameter's base64 is none") from None


def _failed(error: Exception, guard: Guard, uri: str) -> Failed:
    text = str(error)
    if guard.late:
        return Failed("timeout", "the query took too long", "raise timeout_ms, or ask for less")
    if guard.denied:
        return Failed("not_allowed", f"a query may not use {guard.denied}", "it can only read")
    if text.startswith("unable to open") and uri.endswith("#wal"):
        return Failed(
            "wal_read_only",
            "it has a write-ahead log, and is where the sandbox cannot write",
            "checkpoint it (PRAGMA journal_mode=DELETE), or copy it with its -wal file",
        )
    for words, code, fix in _ERRORS:
        if re.match(words, text):
            return Failed(code, text, fix)
    is_binding = isinstance(error, (sqlite3.ProgrammingError, sqlite3.InterfaceError))
    return Failed("bad_parameter" if is_binding else "sql_error", text)


if __name__ == "__main__":
    answer(work)
