import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentd.daemon.store import sqlite
from agentd.daemon.store.errors import StoreBusy, StoreError, StoreLocked
from agentd.daemon.store.records import (
    ApiKeyRecord,
    IdempotencyRecord,
    ProcessRecord,
    SandboxRecord,
)
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model import commit
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.result import Cause, CauseCode, Exit
from agentd.model.spec import SandboxSpec

HOLDER = """
import sys, time
from agentd.daemon.store.sqlite import SqliteStore
store = SqliteStore(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path):
    made = SqliteStore(str(tmp_path / "state"))
    yield made
    made.close()


def sandbox(name, **fields):
    values = {
        "principal": "alice",
        "spec": SandboxSpec(isolation=IsolationLevel.MICROVM, env={"A": "1"}, limits=Limits()),
        "backend": "linux",
        "level": "namespace",
        "state": "ready",
        "created": 1.5,
    }
    return SandboxRecord(id=name, **(values | fields))


def put(*records):
    def work(transaction):
        for record in records:
            transaction.put(record)

    return work


RECORDS = [
    sandbox("sbx-1", deadline=9.25, labels={"ci": "yes"}, save={"pid": 4, "groups": ["a"]}),
    ProcessRecord(
        id="prc-1",
        sandbox="sbx-1",
        principal="alice",
        argv=("echo", "ü\0"),
        state="ended",
        created=2.0,
        ended=3.0,
        tag="t",
        pid=7,
        exit=Exit(0, None, Cause.of(CauseCode.EXITED, "exit code 0")),
        journal="prc-1",
    ),
    ApiKeyRecord(
        id="k1", principal="bob", hash=b"\0\xff" * 16, created=1.0, scopes=("run", "files")
    ),
    IdempotencyRecord(
        principal="bob",
        key="a",
        digest="d",
        state="done",
        created=1.0,
        expires=2.0,
        status=201,
        headers={"content-type": "x"},
        body=b"\0body",
        size=5,
    ),
]
KEYS = [("sbx-1",), ("prc-1",), ("k1",), ("bob", "a")]


@pytest.mark.parametrize(("record", "key"), list(zip(RECORDS, KEYS, strict=True)))
def test_every_kind_comes_back_as_it_was_put_also_by_the_next_daemon(store, record, key):
    store.write(put(record))
    assert store.get(type(record), *key) == record
    store.close()
    again = SqliteStore(store.folder)
    assert again.get(type(record), *key) == record
    assert again.write(lambda t: t.delete(type(record), *key))
    assert not again.write(lambda t: t.delete(type(record), *key))
    assert again.get(type(record), *key) is None
    again.close()


def test_put_replaces_and_a_transaction_sees_what_it_wrote(store):
    def work(transaction):
        transaction.put(sandbox("sbx-1", state="starting"))
        transaction.put(sandbox("sbx-1", state="ready"))
        return transaction.get(SandboxRecord, "sbx-1").state

    assert store.write(work) == "ready"
    assert len(store.find(SandboxRecord)) == 1


def test_pages_and_filters(store):
    made = [sandbox(f"sbx-{i}", principal="ab"[i % 2], labels={"a.b\"'": "'"}) for i in range(9)]
    store.write(put(*reversed(made)))
    first = store.find(SandboxRecord, limit=4)
    rest = store.find(SandboxRecord, after=(first[-1].id,))
    assert first + rest == made
    assert store.find(SandboxRecord, principal="b") == made[1::2]
    assert store.find(SandboxRecord, deadline=None, principal="a", limit=2) == made[:4:2]
    assert store.find(SandboxRecord, limit=-1) == []


def test_keys_of_two_columns_page_in_their_order(store):
    made = [
        IdempotencyRecord(principal=p, key=k, digest="", state="done", created=0, expires=i, size=i)
        for i, (p, k) in enumerate([("a", "x"), ("a", "y"), ("b", "a"), ("b", "z")])
    ]
    store.write(put(*made))
    assert store.find(IdempotencyRecord, after=("a", "x")) == made[1:]
    assert store.measure(IdempotencyRecord, "size", principal="b") == (2, 5)
    assert store.measure(IdempotencyRecord, "size", principal="nobody") == (0, 0)
    assert store.write(lambda t: t.delete_before(IdempotencyRecord, "expires", 3, 2)) == 2
    assert store.write(lambda t: t.take_before(IdempotencyRecord, "expires", 3, 2)) == made[2:3]
    assert store.find(IdempotencyRecord) == made[3:]


def test_a_name_that_is_no_column_never_becomes_sql(store):
    for read in (
        lambda: store.find(SandboxRecord, **{"id IS NULL OR 1": 1}),
        lambda: store.measure(SandboxRecord, "id) FROM sandboxes--"),
    ):
        with pytest.raises(TypeError, match="has no column"):
            read()


def test_what_a_write_raises_undoes_it_and_it_alone(store, monkeypatch):
    hold, held = threading.Event(), threading.Event()

    def block(transaction):
        held.set()
        hold.wait()

    def fail(transaction):
        transaction.put(sandbox("sbx-bad"))
        raise LookupError("no")

    def bad_sql(transaction):
        transaction.put(sandbox("sbx-bad"))
        transaction.put(sandbox("sbx-worse", created=None))

    blocked = store.submit(block)
    held.wait()
    # They wait together, so that they share one commit.
    futures = [store.submit(w) for w in (put(sandbox("a")), fail, bad_sql, put(sandbox("b")))]
    hold.set()
    blocked.result()
    for future, error in zip(futures, (None, LookupError, StoreError, None), strict=True):
        with pytest.raises(error) if error else contextlib.nullcontext():
            future.result()
    assert [r.id for r in store.find(SandboxRecord)] == ["a", "b"]


def test_too_many_waiting_writes_are_refused(store, monkeypatch):
    monkeypatch.setattr(commit, "MAX_WAITING", 2)
    hold, held = threading.Event(), threading.Event()

    def block(transaction):
        held.set()
        hold.wait()

    futures = [store.submit(block)]
    held.wait()
    futures += [store.submit(put(sandbox(name))) for name in "ab"]
    with pytest.raises(StoreBusy, match="try again later"):
        store.submit(put(sandbox("c")))
    hold.set()
    for future in futures:
        future.result()
    assert [r.id for r in store.find(SandboxRecord)] == ["a", "b"]


def test_threads_at_once_each_find_what_they_wrote(store):
    def thread(i):
        for n in range(12):
            store.write(put(sandbox(f"sbx-{i}-{n:02}")))
            assert store.get(SandboxRecord, f"sbx-{i}-{n:02}") is not None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(thread, range(8)))
    assert len(store.find(SandboxRecord)) == 96
    assert store.counts().commits <= store.counts().writes == 96


def test_close_finishes_what_waits_and_then_refuses(store):
    futures = [store.submit(put(sandbox(f"{i}"))) for i in range(20)]
    store.close()
    store.close()
    assert all(f.done and f.error is None for f in futures)
    for use in (lambda: store.write(put(sandbox("x"))), lambda: store.find(SandboxRecord)):
        with pytest.raises(StoreError, match="the store is closed"):
            use()


def test_what_is_not_urgent_goes_along_with_the_next_write(store, monkeypatch):
    monkeypatch.setattr(sqlite, "LAZY_SECONDS", 60.0)
    later = store.submit(put(sandbox("a")), urgent=False)
    time.sleep(0.1)
    assert not later.done and store.counts().commits == 0
    store.write(put(sandbox("b")))
    assert later.done and store.counts().commits == 1
    last = store.submit(put(sandbox("c")), urgent=False)
    store.close()
    assert last.done
    again = SqliteStore(store.folder)
    assert len(again.find(SandboxRecord)) == 3
    again.close()


def test_what_is_not_urgent_is_written_though_nothing_follows(store, monkeypatch):
    monkeypatch.setattr(sqlite, "LAZY_SECONDS", 0.01)
    store.submit(put(sandbox("a")), urgent=False).result(120)
    assert store.get(SandboxRecord, "a") is not None


def test_commits_are_synced(store):
    settings = store.write(
        lambda t: [
            t._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous")
        ]
    )
    assert settings == ["wal", 2]


def test_files_are_for_their_owner_alone(store):
    store.write(put(sandbox("a")))
    assert os.stat(store.folder).st_mode & 0o777 == 0o700
    names = os.listdir(store.folder)
    assert {"store.db", "store.db-wal", "store.lock"} <= set(names)
    for name in names:
        assert os.stat(f"{store.folder}/{name}").st_mode & 0o777 == 0o600, name


def test_the_second_daemon_refuses_naming_the_first_and_the_lock_dies_with_it(tmp_path):
    folder = str(tmp_path / "state")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout.readline() == b"open\n"
        for _ in range(2):
            with pytest.raises(StoreLocked, match=rf"in use by process {holder.pid}\b"):
                SqliteStore(folder)
        holder.kill()
        holder.wait()
    store = SqliteStore(folder)
    with pytest.raises(StoreLocked, match=rf"process {os.getpid()}\b"):
        SqliteStore(folder)
    store.close()


def test_what_is_not_a_store_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "store.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="cannot be opened: file is not a database"):
        SqliteStore(str(tmp_path))
    assert (tmp_path / "store.db").read_bytes() == b"not a database" * 100


def test_a_link_in_the_place_of_the_store_is_not_followed(tmp_path):
    (elsewhere := tmp_path / "elsewhere").touch()
    (folder := tmp_path / "state").mkdir(0o700)
    (folder / "store.db").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="cannot open"):
        SqliteStore(str(folder))
    assert elsewhere.read_bytes() == b""


def test_a_folder_that_others_may_change_is_refused(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StoreError, match="chmod 700"):
        SqliteStore(str(folder))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make"):
        SqliteStore(str(tmp_path / "file" / "state"))


def test_an_unreadable_row_is_an_error_that_names_it(store):
    store.write(put(sandbox("sbx-1")))
    store.write(
        lambda t: t._connection.execute("UPDATE sandboxes SET spec = '{\"isolation\": 77}'")
    )
    with pytest.raises(StoreError, match="sandboxes sbx-1 is unreadable"):
        store.get(SandboxRecord, "sbx-1")


def test_a_full_disk_fails_the_write_and_the_store_goes_on(store):
    def limit(pages):
        store.write(lambda t: t._connection.execute(f"PRAGMA max_page_count = {pages}").fetchall())

    store.write(put(sandbox("before")))
    limit(1)  # below what it has: SQLite takes its present size
    with pytest.raises(StoreError, match="full"):
        store.write(put(*(sandbox(f"sbx-{i}", labels={"a": "b" * 2000}) for i in range(99))))
    assert [r.id for r in store.find(SandboxRecord)] == ["before"]
    limit(10_000)
    store.write(put(sandbox("after")))
    assert [r.id for r in store.find(SandboxRecord)] == ["after", "before"]


def test_readers_do_not_wait_for_a_writer(store):
    store.write(put(sandbox("a")))
    hold, held = threading.Event(), threading.Event()

    def block(transaction):
        transaction.put(sandbox("b"))
        held.set()
        hold.wait()

    future = store.submit(block)
    held.wait()
    assert [r.id for r in store.find(SandboxRecord)] == ["a"]
    hold.set()
    future.result()
    assert [r.id for r in store.find(SandboxRecord)] == ["a", "b"]


def test_a_reader_cannot_write(store):
    with pytest.raises(StoreError, match="readonly"):
        store._rows("DELETE FROM sandboxes")


def test_a_store_that_another_program_writes_to_is_told_as_such(store):
    with contextlib.closing(sqlite3.connect(store._path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked") as told:
            store.write(put(sandbox("sbx-1")))
        assert "end the other program that writes to it" in told.value.remediation
        other.execute("ROLLBACK")
    store.write(put(sandbox("sbx-1")))
