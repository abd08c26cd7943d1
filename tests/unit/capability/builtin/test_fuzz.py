"""Random archives and random SQL: nothing is written where nothing may be."""

import io
import json
import os
import sqlite3
import stat
import subprocess
import tarfile
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.capability.bundle import bundled

PYTHON = "/usr/bin/python3"
SLOW = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def run(name: str, ask: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [PYTHON, "-I", "-S", "-c", bundled(name)],
        input=json.dumps(ask).encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def everything(place: Path) -> dict[str, tuple[int, int, str]]:
    """Path -> mode, size, and where a link leads, of all below ``place``."""
    found = {}
    for directory, names, files in os.walk(place):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            entry = os.lstat(path)
            target = os.readlink(path) if stat.S_ISLNK(entry.st_mode) else ""
            size = entry.st_size if stat.S_ISREG(entry.st_mode) else 0
            found[os.path.relpath(path, place)] = (entry.st_mode, size, target)
    return found


# --- archives ---

PARTS = st.sampled_from(
    ["a", "b", "..", ".", "", "out", "é", "C:", "a\\b", "~", "-x", "a b", "\x01"]
)
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("/".join).filter(bool)
KINDS = st.sampled_from([b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"7", b"S", b"V", b"Z"])
MODES = st.sampled_from([0, 0o644, 0o755, 0o4755, 0o7777, 0o120777, 0o60644])
ENTRIES = st.lists(
    st.tuples(NAMES, KINDS, MODES, st.sampled_from(["", "..", "/tmp", "a"]), st.binary(max_size=9)),
    min_size=1,
    max_size=5,
)


def tar_of(entries: list[Any], form: int) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for name, kind, mode, target, data in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.linkname = kind, mode, target
            info.size = len(data) if kind in b"0\0007" else 0
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


def zip_of(entries: list[Any]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        had = set()
        for name, _, mode, _, data in entries:
            if name not in had:
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                archive.writestr(info, data)
            had.add(name)
    return made.getvalue()


def check_extraction(place: Path, data: bytes) -> None:
    box = place / "box"
    subprocess.run(["rm", "-rf", str(box)], check=True)
    (box / "work").mkdir(parents=True)
    (box / "victim").write_text("mine")
    (box / "work/x").write_bytes(data)
    before = everything(box)
    answer = run(
        "archive_read",
        {
            "op": "extract",
            "root": f"{box}/work",
            "path": f"{box}/work/x",
            "to": f"{box}/work/out",
            "temporary": ".agentd-test",
            "member": "",
            "members": [],
            "max_bytes": 1 << 20,
            "max_members": 50,
            "max_ratio": 200,
        },
    )
    after = everything(box)
    new = {path: entry for path, entry in after.items() if path not in before}
    assert {path: after[path] for path in before} == before
    if "error" in answer:
        assert new == {}
        return
    assert all(path == "work/out" or path.startswith("work/out/") for path in new)
    for mode, _, _ in new.values():
        assert stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFDIR)
        assert stat.S_IMODE(mode) in (0o644, 0o755)


@SLOW
@given(entries=ENTRIES, form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_a_random_tar_writes_in_its_target_only(tmp_path: Path, entries: Any, form: int) -> None:
    check_extraction(tmp_path, tar_of(entries, form))


@SLOW
@given(entries=ENTRIES)
def test_a_random_zip_writes_in_its_target_only(tmp_path: Path, entries: Any) -> None:
    check_extraction(tmp_path, zip_of(entries))


@SLOW
@given(
    base=st.sampled_from(["zip", "tar"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_changed_archive_writes_in_its_target_only(
    tmp_path: Path, base: str, changes: list[tuple[float, int]]
) -> None:
    entries = [("d/a", b"0", 0o644, "", b"one"), ("b", b"0", 0o755, "", b"two")]
    made = zip_of(entries) if base == "zip" else tar_of(entries, tarfile.PAX_FORMAT)[:3072]
    data = bytearray(made)
    for where, value in changes:
        data[int(where * (len(data) - 1))] = value
    check_extraction(tmp_path, bytes(data))


# --- SQL ---

TEXT = """
    select insert update delete from into t u main temp where values ( ) , ; * = 1 'x' x'00' a b
    create table view index trigger drop alter add rename attach detach 'y.db' as pragma
    user_version journal_mode wal writable_schema on vacuum reindex analyze begin commit
    rollback savepoint with recursive union all returning set replace explain -- /* */ ? :p
    load_extension zeroblob randomblob group_concat json_each pragma_user_version dbstat
    sqlite_schema sqlite_dbpage fts words match 'optimize' rowid null not exists cross join
"""
WORDS = st.sampled_from(TEXT.split())
SQL = st.lists(WORDS, min_size=1, max_size=14).map(" ".join)
WRITES = st.sampled_from(
    [
        "insert into t values ({0})",
        "with x as ({0}) insert into t select 1 from x",
        "update t set a = ({0}) returning a",
        "create table u as {0}",
        "vacuum into ({0})",
        "attach ({0}) as other",
        "pragma user_version = 7 -- {0}",
        "insert into words(words) values ('optimize') -- {0}",
        "update sqlite_schema set sql = ({0})",
        "insert into sqlite_dbpage values (1, ({0}))",
        "{0}",
    ]
)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "create table t(a); insert into t values (1), ('x');"
            "create virtual table words using fts5(x); insert into words values ('one two');"
        )
    return path


@SLOW
@given(sql=SQL, around=WRITES)
def test_no_sql_changes_a_byte_or_makes_a_file(database: Path, sql: str, around: str) -> None:
    before = database.read_bytes()
    run(
        "sqlite_query",
        {
            "root": str(database.parent),
            "path": str(database),
            "sql": around.format(sql),
            "parameters": [],
            "max_rows": 10,
            "max_bytes": 1 << 16,
            "timeout": 2.0,
        },
    )
    assert database.read_bytes() == before
    assert os.listdir(database.parent) == ["a.db"]
