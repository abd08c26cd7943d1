"""sqlite.query.v1: the rows of one query, over a database that stays as it is."""

from typing import Any

import msgspec

from agentd.capability import script
from agentd.capability.builtin import fs
from agentd.capability.port import Call, Inside
from agentd.capability.shape import array, integer, mapping, parameters, string
from agentd.model import typed
from agentd.model.capability import About, Bounds, Example, Outcome

MAX_BYTES = 8 << 20
MAX_ROWS = 100_000
_SCALAR = {
    "anyOf": [
        {"type": ["null", "boolean", "number", "string"]},
        parameters(["base64"], base64=string()),
    ]
}
_SCHEMA = parameters(
    ["path", "sql"],
    path=fs.PATH,
    sql=string(1, 100_000),
    parameters={
        "description": 'of "?" in order, or of ":name" by name; blobs are {"base64": ...}',
        "anyOf": [array(_SCALAR, 1000), mapping(_SCALAR, 1000)],
        "default": [],
    },
    max_rows=integer(1, MAX_ROWS, 1000),
    max_bytes=integer(1, MAX_BYTES, 1 << 20, "of the rows as JSON"),
    timeout_ms=fs.TIMEOUT_MS,
)
_EXAMPLES = (
    Example(
        "a file that is no database",
        {"path": "notes.db", "sql": "select 1"},
        files={"notes.db": "roses are red\n"},
        error="not_a_database",
    ),
    Example("one that is not there", {"path": "gone.db", "sql": "select 1"}, error="not_found"),
)


class Rows(msgspec.Struct, frozen=True):
    columns: list[str]
    rows: list[list[Any]]
    truncated: str
    immutable: bool


_ROWS = typed.decoder(Rows)


class SqliteQuery:
    about = About(
        name="sqlite.query.v1",
        summary="query an SQLite database without changing it",
        schema=_SCHEMA,
        bounds=Bounds(timeout=30.0, output=24 << 20),
        examples=_EXAMPLES,
    )

    def run(self, call: Call, inside: Inside) -> Outcome:
        asked = call.parameters
        ask = {
            "root": inside.workspace,
            "path": fs.place(inside, asked["path"]),
            "sql": asked["sql"],
            "parameters": asked["parameters"],
            "max_rows": asked["max_rows"],
            "max_bytes": asked["max_bytes"],
            # A little sooner, for SQLite can say it better than a killed process.
            "timeout": max(call.timeout - 0.5, call.timeout / 2),
        }
        found = script.run(inside, "sqlite_query", ask, _ROWS, call.timeout)
        limits = {
            "max_rows": asked["max_rows"],
            "max_bytes": asked["max_bytes"],
            "timeout_ms": round(call.timeout * 1000),
        }
        return Outcome({**msgspec.to_builtins(found), "limits": limits})


CAPABILITY = SqliteQuery()
