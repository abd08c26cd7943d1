import sqlite3
from contextlib import closing

import pytest

from agentd.daemon.store.errors import StoreError
from agentd.daemon.store.migrations import STEPS, migrate

MORE = "CREATE TABLE extra (a TEXT) STRICT; INSERT INTO extra SELECT id FROM api_keys"
BROKEN = "CREATE TABLE half (a TEXT) STRICT; INSERT INTO nowhere VALUES (1)"


@pytest.fixture
def connection():
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as made:
        yield made


def names(connection):
    rows = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    return {row[0] for row in rows}


def test_steps_are_taken_once_in_order_with_the_data_kept(connection):
    assert migrate(connection) == len(STEPS)
    assert migrate(connection) == 0
    connection.execute(
        "INSERT INTO api_keys VALUES ('k', 'p', x'00', 1.0, '[]', NULL, NULL, '', '', NULL, NULL)"
    )
    assert migrate(connection, (*STEPS, MORE)) == 1
    assert connection.execute("SELECT a FROM extra").fetchall() == [("k",)]
    assert migrate(connection, (*STEPS, MORE)) == 0


def test_a_step_that_fails_leaves_nothing_and_may_be_taken_again(connection):
    migrate(connection)
    before = names(connection)
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        migrate(connection, (*STEPS, BROKEN))
    assert names(connection) == before
    assert migrate(connection, (*STEPS, MORE)) == 1


def test_a_newer_store_and_another_programs_file_are_refused(connection):
    migrate(connection, (*STEPS, MORE))
    with pytest.raises(StoreError, match=f"schema {len(STEPS) + 1}, and this agentd knows"):
        migrate(connection)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as other:
        other.execute("CREATE TABLE theirs (a)")
        with pytest.raises(StoreError, match="another program's database"):
            migrate(other)
        assert names(other) == {"theirs"}
