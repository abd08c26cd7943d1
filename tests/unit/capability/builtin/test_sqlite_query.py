"""sqlite.query.v1 in real sandboxes: what it answers, and that nothing of it writes."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agentd.model.capability import CallFailed
from agentd.model.errors import InvalidInput

NAME = "sqlite.query.v1"
SETUP = """
create table t(a, b);
insert into t values (1, 'one'), (2, x'00ff'), (9007199254740993, 9e999), (null, 1.5);
create virtual table words using fts5(x);
insert into words values ('hello world');
"""


def endless(what: str) -> str:
    return f"with recursive r(n) as (select 1 union all select n + 1 from r) select {what} from r"  # noqa: S608


def counted(most: int, what: str) -> str:
    return f"{endless(what).replace('from r)', f'from r where n < {most})')}"


@pytest.fixture(scope="module", params=["linux"])
def backend(request: pytest.FixtureRequest) -> str:
    """One wall: what is tested is the script, and the examples run behind the others."""
    return str(request.param)


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], bytes]:
    def made(sql: str) -> bytes:
        path = tmp_path / "made.db"
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(sql)
        return path.read_bytes()

    return made


@pytest.fixture
def data(make: Callable[[str], bytes]) -> bytes:
    return make(SETUP)


@pytest.fixture
def db(box: Any, data: bytes) -> Any:
    box.put("a.db", data)
    return box


def query(box: Any, sql: str, **parameters: Any) -> dict[str, Any]:
    return dict(box.call(NAME, **{"path": "a.db", "sql": sql, **parameters}))


def code(box: Any, sql: str, **parameters: Any) -> str:
    with pytest.raises(CallFailed) as caught:
        query(box, sql, **parameters)
    return caught.value.code


# --- what it answers ---


def test_values_of_each_type(db: Any) -> None:
    value = query(db, "select * from t")
    assert value == {
        "columns": ["a", "b"],
        "rows": [
            [1, "one"],
            [2, {"base64": "AP8="}],
            [9007199254740993, {"real": "inf"}],
            [None, 1.5],
        ],
        "truncated": "",
        "immutable": False,
        "limits": {"max_rows": 1000, "max_bytes": 1 << 20, "timeout_ms": 30_000},
    }


def test_text_that_is_not_utf_8_is_bytes(db: Any) -> None:
    assert query(db, "select cast(x'ff41' as text)")["rows"] == [[{"base64": "/0E="}]]


def test_parameters_in_order_and_by_name(db: Any) -> None:
    given = [1, "x", None, 2.5, True, {"base64": "AP8="}]
    rows = query(db, "select ?, ?, ?, ?, ?, ?", parameters=given)["rows"]
    assert rows == [[1, "x", None, 2.5, 1, {"base64": "AP8="}]]
    assert query(db, "select :b, :a", parameters={"a": 1, "b": 2})["rows"] == [[2, 1]]


@pytest.mark.parametrize(
    "parameters", [[], [1, 2], {"b": 1}, [1 << 63], [{"base64": "not base64"}]]
)
def test_parameters_that_do_not_fit(db: Any, parameters: Any) -> None:
    assert code(db, "select :a", parameters=parameters) == "bad_parameter"


@pytest.mark.parametrize("parameters", [[[]], [{"x": 1}], 1, [{"base64": 1}]])
def test_parameters_that_sqlite_does_not_have(db: Any, parameters: Any) -> None:
    with pytest.raises(InvalidInput):
        query(db, "select 1", parameters=parameters)


def test_a_number_of_rows_and_of_bytes_at_most(db: Any) -> None:
    value = query(db, endless("n"), max_rows=3)
    assert (value["rows"], value["truncated"]) == ([[1], [2], [3]], "rows")
    assert query(db, "values (1), (2)", max_rows=2)["truncated"] == ""
    value = query(db, endless("'aaaaaaaa'"), max_bytes=100)
    assert value["truncated"] == "bytes" and 3 < len(value["rows"]) < 10
    assert query(db, "select zeroblob(2000000)")["rows"] == []


def test_full_text_json_windows_and_plans(db: Any) -> None:
    assert query(db, "select x from words where words match 'hello'")["rows"] == [["hello world"]]
    assert query(db, "select value from json_each('[1, 2]')")["rows"] == [[1], [2]]
    assert query(db, "select sum(a) over (order by a) from t limit 1")["rows"] == [[None]]
    assert query(db, "explain query plan select * from t")["rows"]
    assert query(db, "select name from sqlite_schema where name = 't'")["rows"] == [["t"]]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("select x from (", "sql_error"),
        ("select * from gone", "sql_error"),
        ("-- nothing", "not_a_query"),
        (";", "not_a_query"),
        ("select 1; select 2", "many_statements"),
        ("select 1; drop table t", "many_statements"),
        ("select 1 \0", "sql_error"),
        # The caller's own words in what SQLite says choose no code.
        ("select busy from t", "sql_error"),
        ("select * from locked", "sql_error"),
        ("select json('{')", "sql_error"),
        ("select [malformed too big one statement] from t", "sql_error"),
    ],
)
def test_what_is_no_query(db: Any, sql: str, expected: str) -> None:
    assert code(db, sql) == expected


# --- what it may not do ---


@pytest.mark.parametrize(
    "sql",
    [
        "insert into t values (1, 2)",
        "insert into t values (1, 2) returning a",
        "with x as (select 1) insert into t select 1, 2 from x",
        "update t set a = 1",
        "delete from t",
        "drop table t",
        "create table u(a)",
        "create temp table u(a)",
        "create view v as select 1",
        "create virtual table u using fts5(x)",
        "alter table t rename to u",
        "attach '/workspace/b.db' as b",
        "attach ':memory:' as b",
        "detach main",
        "vacuum",
        "vacuum into '/workspace/b.db'",
        "reindex",
        "analyze",
        "begin",
        "begin exclusive",
        "savepoint s",
        "pragma user_version",
        "pragma user_version = 1",
        "pragma journal_mode = wal",
        "pragma query_only = off",
        "pragma trusted_schema = on",
        "pragma hard_heap_limit = 0",
        "pragma data_version = 1",
        "pragma page_size = 512",
        "update sqlite_schema set sql = 'x'",
        "delete from sqlite_schema",
        "select * from pragma_table_info('t')",
        "select * from pragma_data_version",
        "select load_extension('/tmp/x')",
        "select fts3_tokenizer('simple')",
        "select sqlite_log(1, 'x')",
        "select last_insert_rowid()",
        "insert into words(words) values ('optimize')",
    ],
)
def test_statements_that_do_more_than_read(db: Any, data: bytes, sql: str) -> None:
    if sql == "select * from pragma_data_version":
        query(db, sql)  # that one is allowed: FTS5 needs it, and it says nothing
    else:
        assert code(db, sql) == "not_allowed"
    assert db.get("a.db") == data
    assert db.sh("ls -A").text == "a.db\n"


@pytest.mark.parametrize("name", ["writefile", "readfile", "edit", "fsdir", "eval"])
def test_functions_of_other_builds(db: Any, name: str) -> None:
    """Where they exist they are refused, where they do not SQLite says so."""
    assert code(db, f"select {name}('/tmp/x', 'y')") in ("sql_error", "not_allowed")
    assert db.sh("ls -A /tmp").text == ""


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("select zeroblob(1e9)", "too_large"),
        ("select length(randomblob(1e9))", "too_large"),
        ("select hex(zeroblob(16000000))", "too_large"),
        ("select replace(hex(zeroblob(8000000)), '00', hex(zeroblob(8000000)))", "too_large"),
        (counted(100_000, "group_concat(hex(zeroblob(10000)))"), "too_large"),
        ("select " + "x, " * 100 + "1 from (select zeroblob(16000000) as x)", "too_large"),
        (counted(1000, "count(distinct hex(randomblob(1000000)))"), "too_large"),
        ("select " + "-".join(["1"] * 300), "sql_error"),
        (" union all ".join(["select 1"] * 60), "sql_error"),
        ("select 'a' like '" + "%a" * 600 + "'", "sql_error"),
    ],
)
def test_bombs_of_memory(db: Any, sql: str, expected: str) -> None:
    assert code(db, sql) == expected


def test_parentheses_in_parentheses(db: Any) -> None:
    """Some parsers take any number of them (3.46), some have a stack of a fixed size (3.40)."""
    try:
        assert query(db, "select " + "(" * 300 + "1" + ")" * 300)["rows"] == [[1]]
    except CallFailed as error:
        assert (error.code, error.message) == ("sql_error", "parser stack overflow")


def test_a_format_that_would_fill_the_memory(db: Any) -> None:
    value = query(db, "select length(printf('%.*c', 1000000000, 'x'))")
    assert value["rows"] == [[None]]


@pytest.mark.parametrize(
    "sql",
    [
        endless("count(*)"),
        endless("group_concat('')"),
        "select count(*) from t a, t b, t c, t d, t e, t f, t g, t h, t i, t j, t k, t l, t m, t n",
    ],
)
def test_queries_without_end(db: Any, sql: str) -> None:
    assert code(db, sql, timeout_ms=1000) == "timeout"


# --- what a database may be ---


def test_a_schema_with_functions_that_do_more(box: Any, make: Callable[[str], bytes]) -> None:
    box.put(
        "a.db",
        make(
            "create table t(a, b as (hex(a)));"
            "insert into t values (1);"
            "create view extension as select load_extension('/tmp/x');"
            "create view tokenizer as select fts3_tokenizer('simple');"
            "create view plain as select upper('x') as x;"
        ),
    )
    assert code(box, "select * from extension") in ("sql_error", "not_allowed")
    assert code(box, "select * from tokenizer") in ("sql_error", "not_allowed")
    assert query(box, "select * from plain")["rows"] == [["X"]]
    assert query(box, "select * from t")["rows"] == [[1, "31"]]


def test_a_schema_that_was_written_by_hand(box: Any, make: Callable[[str], bytes]) -> None:
    made = make("create table t(a); create view v as select 'abcdefghijkl';")
    box.put(
        "a.db", made.replace(b"create view v as", b"create blob v as").replace(b"VIEW", b"BLOB")
    )
    with pytest.raises(CallFailed) as caught:
        query(box, "select * from t")
    assert caught.value.code in ("corrupt", "sql_error")


@pytest.mark.parametrize("where", [18, 100, 105, 4096])
def test_a_damaged_file(db: Any, data: bytes, where: int) -> None:
    broken = data[:where] + b"\xff" * 64 + data[where + 64 :]
    db.put("a.db", broken)
    try:
        query(db, "select * from t, words")
    except CallFailed as error:
        assert error.code in ("corrupt", "not_a_database", "sql_error", "io_error")
    assert db.get("a.db") == broken


def test_damage_in_a_full_text_index_is_no_matter_of_leave(box: Any, make: Any) -> None:
    data = make("create virtual table w using fts4(x); insert into w values ('one two');")
    box.put("a.db", data.replace(b"\0\x03one", b"\xff\xff\xffon"))
    assert code(box, "select * from w where w match 'one'") == "corrupt"


@pytest.mark.parametrize("size", [0, 10, 100, 5000])
def test_a_file_that_was_cut_short(db: Any, data: bytes, size: int) -> None:
    db.put("a.db", data[:size])
    assert code(db, "select * from t, words") in ("not_a_database", "corrupt", "sql_error")


def test_links_pipes_and_directories(db: Any) -> None:
    db.sh("mkdir d; cp a.db d/a.db; ln -s a.db link; ln -s d dir; mkfifo pipe")
    for path, expected in (
        ("link", "link"),
        ("dir/a.db", "link"),
        ("pipe", "not_a_file"),
        ("d", "not_a_file"),
        ("gone.db", "not_found"),
        ("d/../a.db", "bad_path"),
        ("/proc/self/cwd/a.db", "link"),
        ("a.db?mode=rw", "not_found"),
    ):
        assert code(db, "select 1", path=path) == expected, path
    db.sh("cp a.db 'a.db?mode=rwc&x#y%00'")
    assert query(db, "select 1", path="a.db?mode=rwc&x#y%00")["rows"] == [[1]]


def test_a_writer_that_holds_it(db: Any) -> None:
    db.sh(
        "python3 -c '\nimport sqlite3, time\n"
        'c = sqlite3.connect("a.db", isolation_level=None); c.execute("begin exclusive")\n'
        'open("held", "w"); time.sleep(60)\' > /dev/null 2>&1 &\n'
        "while ! test -e held; do sleep 0.05; done"
    )
    assert code(db, "select * from t") == "busy"


def test_a_writer_that_was_interrupted(box: Any, tmp_path: Path) -> None:
    """Its journal has what it must take back, and that would be writing."""
    path = tmp_path / "hot.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript("create table t(a); insert into t values (1);")
        connection.executescript("pragma cache_size = 1; begin;")
        connection.execute("insert into t " + counted(5000, "hex(randomblob(100))"))
        box.put("a.db", path.read_bytes())
        box.put("a.db-journal", Path(f"{path}-journal").read_bytes())
    before = box.get("a.db")
    assert code(box, "select count(*) from t") == "needs_recovery"
    assert box.get("a.db") == before


# --- write-ahead logs ---

WAL = "pragma journal_mode = wal; create table t(a); insert into t values (1);"


@pytest.fixture
def wal(tmp_path: Path) -> tuple[bytes, bytes]:
    """A database and its log, with a row that only the log has."""
    path = tmp_path / "wal.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(WAL)
        connection.execute("pragma wal_checkpoint(truncate)")
        connection.execute("insert into t values (2)")
        connection.commit()
        return path.read_bytes(), Path(f"{path}-wal").read_bytes()


def test_a_log_is_read_where_it_can_be_written(box: Any, wal: tuple[bytes, bytes]) -> None:
    box.put("a.db", wal[0])
    box.put("a.db-wal", wal[1])
    assert query(box, "select a from t")["rows"] == [[1], [2]]
    assert box.get("a.db") == wal[0]


def test_a_log_in_a_place_that_cannot_be_written(
    make_box: Callable[..., Any], tmp_path: Path, wal: tuple[bytes, bytes]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "a.db").write_bytes(wal[0])
    box = make_box(mounts=[f"{place}:/mnt:ro"])
    value = query(box, "select a from t", path="/mnt/a.db")
    assert (value["rows"], value["immutable"]) == ([[1]], True)
    (place / "a.db-wal").write_bytes(wal[1])
    assert code(box, "select a from t", path="/mnt/a.db") == "wal_read_only"
    assert sorted(path.name for path in place.iterdir()) == ["a.db", "a.db-wal"]
    assert (place / "a.db").read_bytes() == wal[0]
