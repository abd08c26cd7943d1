"""Each bound of a query by itself: the script alone, with the bound behind it lifted."""

import json
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agentd.capability.bundle import bundled

PYTHON = "/usr/bin/python3"
GROWING = (
    "with recursive r(n) as (values(1) union all select n + 1 from r where n < 2000)"
    " select count(distinct hex(randomblob(500000))) from r"
)
WIDE = "select " + "x, " * 200 + "1 from (select zeroblob(16000000) as x)"
ENDLESS = "with recursive r(n) as (select 1 union all select n + 1 from r) select count(*) from r"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "create virtual table words using fts4(x); insert into words values ('one two');"
            "create view v as select offsets(words) from words where words match 'two';"
        )
    return path


def run(database: Path, sql: str, *lifted: tuple[str, str], timeout: float = 30.0) -> Any:
    source = bundled("sqlite_query")
    for bound, other in lifted:
        assert bound in source
        source = source.replace(bound, other)
    ask = {
        "root": str(database.parent),
        "path": str(database),
        "sql": sql,
        "parameters": [],
        "max_rows": 10,
        "max_bytes": 1 << 16,
        "timeout": timeout,
    }
    done = subprocess.run(
        [PYTHON, "-I", "-S", "-c", source],
        input=json.dumps(ask).encode(),
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_the_clock_ends_a_query_that_nobody_else_ends(database: Path) -> None:
    assert run(database, ENDLESS, timeout=0.2)["error"]["code"] == "timeout"


def test_sqlites_own_bound_of_memory(database: Path) -> None:
    found = run(database, GROWING, ("ADDRESS_SPACE = 1 << 30", "ADDRESS_SPACE = 1 << 40"))
    assert found["error"]["code"] == "too_large"


def test_the_processes_bound_of_memory(database: Path) -> None:
    """What Python holds of a row SQLite does not count."""
    found = run(database, WIDE, ("HEAP = 256 << 20", "HEAP = 1 << 40"))
    assert found["error"]["code"] == "too_large"


def test_a_view_may_not_use_what_a_query_may(database: Path) -> None:
    direct = "select offsets(words) from words where words match 'two'"
    assert run(database, direct)["rows"] == [["0 0 4 3"]]
    found = run(database, "select * from v")
    assert "unsafe use of " in found["error"]["message"]  # the function, or (3.40) the table
    assert run(database, "select * from v", ("trusted_schema=OFF", "trusted_schema=ON"))["rows"]


def test_the_connection_alone_does_not_write(database: Path) -> None:
    before = database.read_bytes()
    lifted = (
        ("connection.set_authorizer(guard.authorize)", "pass"),
        ("query_only=ON", "query_only=OFF"),
    )
    found = run(database, "insert into words values ('three')", *lifted)
    assert found["error"]["code"] == "needs_recovery"  # "attempt to write a readonly database"
    assert database.read_bytes() == before
