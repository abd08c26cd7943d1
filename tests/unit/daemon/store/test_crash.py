"""Whatever moment the daemon or the machine dies at: what was acknowledged is there, and whole."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

from agentd.daemon.store.records import ApiKeyRecord, IdempotencyRecord
from agentd.daemon.store.sqlite import SqliteStore

COUNT = 4
# Forks a child for each point: it dies before or after its n-th statement, migrations included,
# until one lives to its end. A line each: what it had acknowledged by then, and its wait status.
KILLER = """
import json, os, signal, sys
from agentd.daemon.store import sqlite
from agentd.daemon.store.records import ApiKeyRecord, IdempotencyRecord

class Counting:
    def __init__(self, connection, lives):
        self.connection, self.lives = connection, lives
    def tick(self):
        if not self.lives:
            os.kill(os.getpid(), signal.SIGKILL)
        self.lives -= 1
    def execute(self, *args):
        self.tick()
        result = self.connection.execute(*args)
        self.tick()
        return result
    def __getattr__(self, name):
        return getattr(self.connection, name)

def pair(i):
    def work(t):
        t.put(ApiKeyRecord(id=f"{i:03}", principal="p" * 3000, hash=b"h", created=i))
        t.put(IdempotencyRecord(principal="p", key=f"{i:03}", digest="", state="", created=i,
              expires=i, body=b"b" * 3000))
    return work

def live(folder, lives, pipe):
    connect = sqlite._connect
    def counting(path, settings):
        made = connect(path, settings)
        return Counting(made, lives) if settings is sqlite._WRITER else made
    sqlite._connect = counting
    store = sqlite.SqliteStore(folder)
    def acknowledge(i):
        os.write(pipe, b"%d " % i)
    for i in range(3):
        store.write(pair(i))
        acknowledge(i)
    futures = [store.submit(pair(i)) for i in range(3, 7)]
    for i, future in enumerate(futures, 3):
        future.result()
        acknowledge(i)
    store.write(lambda t: t._connection.execute("PRAGMA user_version").fetchone())
    store._writer._connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    store.write(pair(7))
    acknowledge(7)

lives, status = 0, signal.SIGKILL
while status == signal.SIGKILL:
    folder = f"{sys.argv[1]}/{lives}"
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        live(folder, lives, write)
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        acknowledged = [int(word) for word in pipe.read().split()]
    status = os.waitpid(pid, 0)[1]
    print(json.dumps([folder, acknowledged, status]), flush=True)
    lives += 1
"""


def pair(i):
    def work(transaction):
        transaction.put(ApiKeyRecord(id=f"{i:03}", principal="p" * 3000, hash=b"h", created=i))
        transaction.put(
            IdempotencyRecord(
                principal="p",
                key=f"{i:03}",
                digest="",
                state="",
                created=i,
                expires=i,
                body=b"b" * 3000,
            )
        )

    return work


def found(folder):
    """The writes that are there; each has two rows in two tables, both or none."""
    store = SqliteStore(str(folder))
    try:
        check = store.write(lambda t: t._connection.execute("PRAGMA integrity_check").fetchall())
        assert check == [("ok",)]
        keys = [int(record.id) for record in store.find(ApiKeyRecord)]
        rows = store.find(IdempotencyRecord)
        assert keys == [int(row.key) for row in rows]
        assert all(row.body == b"b" * 3000 for row in rows)
        store.write(pair(999))  # it goes on from here
        return keys
    finally:
        store.close()


def test_killed_at_every_point_between_two_statements(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path)], capture_output=True, text=True, check=False
    )
    lives = [json.loads(line) for line in run.stdout.splitlines()]
    assert lives and lives[-1][2] == 0, run.stderr
    assert {status for _, _, status in lives[:-1]} == {signal.SIGKILL}
    assert lives[-1][1] == list(range(8))
    # Points before, between and after the acknowledgements were met.
    assert {len(acknowledged) for _, acknowledged, _ in lives} >= {0, 1, 2, 3, 7, 8}
    for folder, acknowledged, _ in lives:
        there = found(folder)
        assert there == list(range(len(there))), folder
        assert len(there) >= len(acknowledged), folder


class Written:
    """A store's files as they were while it was open, and how long its log was at each answer."""

    def __init__(self, folder):
        store = SqliteStore(str(folder / "state"))
        self.log = folder / "state" / "store.db-wal"
        self.sizes = []
        for i in range(COUNT):
            store.write(pair(i))
            self.sizes.append(self.log.stat().st_size)
        self.before = (folder / "state" / "store.db").read_bytes()
        self.wal = self.log.read_bytes()
        store.close()  # checkpoints: all of the log is in the file now
        self.after = (folder / "state" / "store.db").read_bytes()

    def crashed(self, folder, database, wal):
        folder.mkdir(mode=0o700)
        (folder / "store.db").write_bytes(database)
        (folder / "store.db-wal").write_bytes(wal)
        there = found(folder)
        shutil.rmtree(folder)
        return there


def cuts(written):
    """Ends of frames (32 bytes of header, then 24 + a page each), and places within them."""
    first = written.sizes[0]
    ends = range(32 + (first - 32) // 4120 * 4120, len(written.wal) + 1, 4120)
    return sorted(
        {min(max(0, end + off), len(written.wal)) for end in ends for off in (0, 24, 2000)}
    )


@pytest.mark.parametrize("torn", ["short", "zeros", "garbage"])
def test_a_log_that_is_torn_anywhere_keeps_what_was_synced_before(tmp_path, torn):
    written = Written(tmp_path)
    seen = set()
    for cut in cuts(written):
        rest = len(written.wal) - cut
        tail = {
            "short": b"",
            "zeros": bytes(rest),
            "garbage": hashlib.shake_128(b"%d" % cut).digest(rest),
        }
        there = written.crashed(tmp_path / "copy", written.before, written.wal[:cut] + tail[torn])
        acknowledged = sum(size <= cut for size in written.sizes)
        assert there == list(range(acknowledged)), cut
        seen.add(acknowledged)
    assert seen == set(range(1, COUNT + 1))


def test_a_checkpoint_that_is_torn_anywhere_loses_nothing(tmp_path):
    written = Written(tmp_path)
    pages = len(written.after) // 4096
    assert pages > 10
    shuffle = random.Random(7)  # noqa: S311 a test that repeats
    for _ in range(20):
        mixed = bytearray(written.before.ljust(len(written.after), b"\0"))
        for page in shuffle.sample(range(pages), shuffle.randrange(pages)):
            place = slice(page * 4096, page * 4096 + 4096)
            mixed[place] = written.after[place]
        assert written.crashed(tmp_path / "copy", bytes(mixed), written.wal) == list(range(COUNT))


def test_without_the_log_the_same_writes_would_be_lost(tmp_path):
    """The copies above prove something: the log is where the acknowledged writes were."""
    written = Written(tmp_path)
    assert len(written.before) < len(written.after)
    assert os.path.exists(tmp_path / "state" / "store.db")
    with pytest.raises(AssertionError):
        assert written.crashed(tmp_path / "copy", written.before, b"") == list(range(COUNT))


# A disk of 600 KiB that fills up, and then has room again.
FULL_DISK = """
import os, sys
from agentd.daemon.store.errors import StoreError
from agentd.daemon.store.records import ApiKeyRecord
from agentd.daemon.store.sqlite import SqliteStore
folder = sys.argv[1]
with open(f"{folder}/ballast", "wb") as file:
    file.write(bytes(200_000))
store = SqliteStore(f"{folder}/state")
def put(i):
    key = ApiKeyRecord(id=f"{i:03}", principal="p" * 9000, hash=b"", created=i)
    store.write(lambda t: t.put(key))
acknowledged = 0
try:
    while True:
        put(acknowledged)
        acknowledged += 1
except StoreError as error:
    print(error.code, acknowledged > 5)
print(len(store.find(ApiKeyRecord)) == acknowledged)
os.unlink(f"{folder}/ballast")
put(acknowledged)
print(len(store.find(ApiKeyRecord)) == acknowledged + 1)
store.close()
again = SqliteStore(f"{folder}/state")
print(len(again.find(ApiKeyRecord)) == acknowledged + 1)
again.close()
"""


@pytest.mark.root
def test_a_disk_that_fills_up_refuses_and_loses_nothing(tmp_path):
    mount = 'mount -t tmpfs -o size=600k none "$1" && exec "$2" -c "$3" "$1"'
    run = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, FULL_DISK],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.split() == ["store_error", "True", "True", "True", "True"], run.stderr
