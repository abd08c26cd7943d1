import asyncio
import os
import signal
import subprocess
import sys
import threading

import msgspec
import pytest

from agentd.daemon import idempotency
from agentd.daemon.idempotency import (
    Answer,
    AnswerDropped,
    Idempotency,
    IdempotencyFull,
    IdempotencyInterrupted,
    IdempotencyMismatch,
)
from agentd.daemon.keyed import KeyedBounds
from agentd.daemon.seal import AnswerSeal
from agentd.daemon.store.errors import StoreError
from agentd.daemon.store.records import IdempotencyRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model import context
from agentd.model.errors import Forbidden, InvalidInput, Refused

# Does its work, of which a file is the trace, and dies before, during or after it.
DIES = """
import asyncio, os, signal, sys
from agentd.daemon.idempotency import Answer, Idempotency
from agentd.daemon.seal import AnswerSeal
from agentd.daemon.store.sqlite import SqliteStore

folder, where = sys.argv[1:3]
lasting = sys.argv[3] == "True"

def die(place):
    if place == where:
        os.kill(os.getpid(), signal.SIGKILL)

def work():
    die("claimed")
    with open(f"{folder}/trace", "a") as file:
        file.write("x")
    die("worked")
    return Answer(201, b"made")

async def main():
    store = SqliteStore(f"{folder}/state")
    keys = Idempotency(store, AnswerSeal(bytes(32)))
    die("before")
    await keys.run("alice", "first", "d", lambda: Answer(200), asyncio.to_thread, lasting=lasting)
    await keys.run("alice", "k", "d", work, asyncio.to_thread, lasting=lasting)
    die("answered")

asyncio.run(main())
"""


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Worker:
    """Counts how often it ran; blocks while ``gate`` is given and not set."""

    def __init__(self, answer=None, gate=None):
        self.answer = answer if answer is not None else Answer(201, b"made", {"location": "/x"})
        self.gate = gate
        self.began = threading.Event()
        self.runs = 0

    async def started(self):
        await asyncio.to_thread(self.began.wait, 120)

    def __call__(self):
        self.runs += 1
        self.began.set()
        if self.gate is not None:
            assert self.gate.wait(120)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Keys(Idempotency):
    def __init__(self, store, bounds=None, key=bytes(32), **options):
        super().__init__(store, AnswerSeal(key), bounds, **options)

    def run(self, principal, key, digest, work, **options):
        return super().run(principal, key, digest, work, asyncio.to_thread, **options)


@pytest.fixture
def store(tmp_path):
    made = SqliteStore(str(tmp_path / "state"))
    yield made
    made.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(store, clock):
    return lambda **bounds: Keys(store, KeyedBounds(ttl=100, **bounds), clock=clock)


def test_a_repeat_gets_the_recorded_answer_also_from_the_next_daemon(make):
    async def main():
        work = Worker()
        keys = make()
        assert await keys.run("alice", "k", "d", work) == work.answer
        for again in (keys, make()):
            answer = await again.run("alice", "k", "d", work)
            assert answer == Answer(201, b"made", {"location": "/x"}, replayed=True)
        assert work.runs == 1

    asyncio.run(main())


@pytest.mark.parametrize("lasting", [True, False])
def test_the_answer_is_synced_where_what_was_done_lasts(make, store, monkeypatch, lasting):
    synced = []
    write = store.write

    def watched(work, *, synced_=synced, synced=True):
        synced_.append(synced)
        return write(work, synced=synced)

    async def main():
        keys = make()
        monkeypatch.setattr(store, "write", watched)
        await keys.run("alice", "k", "d", Worker(), lasting=lasting)
        again = await keys.run("alice", "k", "d", Worker(), lasting=lasting)
        assert again.replayed

    asyncio.run(main())
    # The claim, the answer, and the next claim: where nothing lasts it is looked for, not claimed.
    assert synced == ([False, True, False] if lasting else [False])


def test_a_repeat_while_it_runs_waits_for_the_same_answer(make):
    async def main():
        work, keys = Worker(gate=threading.Event()), make()
        # The second and third come before the first is even in the store.
        tasks = [asyncio.ensure_future(keys.run("alice", "k", "d", work)) for _ in range(3)]
        await work.started()
        tasks.append(asyncio.ensure_future(keys.run("alice", "k", "d", work)))
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        work.gate.set()
        answers = await asyncio.gather(*tasks)
        assert [answer.body for answer in answers] == [b"made"] * 4
        assert [answer.replayed for answer in answers] == [False, True, True, True]
        assert work.runs == 1

    asyncio.run(main())


def test_a_client_that_goes_away_does_not_stop_it_and_its_repeat_attaches(make):
    async def main():
        work, keys = Worker(gate=threading.Event()), make()
        first = asyncio.ensure_future(keys.run("alice", "k", "d", work))
        await work.started()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        again = asyncio.ensure_future(keys.run("alice", "k", "d", work))
        await asyncio.sleep(0)
        work.gate.set()
        assert (await again).body == b"made"
        assert work.runs == 1

    asyncio.run(main())


def test_the_same_key_with_another_body_is_refused_running_or_done(make):
    async def main():
        work, other, keys = Worker(gate=threading.Event()), Worker(), make()
        task = asyncio.ensure_future(keys.run("alice", "k", "d", work))
        early = asyncio.ensure_future(keys.run("alice", "k", "other", other))
        await work.started()
        with pytest.raises(IdempotencyMismatch, match="'k' was used for another request"):
            await keys.run("alice", "k", "other", other)
        with pytest.raises(IdempotencyMismatch) as caught:
            await early
        assert caught.value.code == "idempotency_mismatch"
        work.gate.set()
        await task
        with pytest.raises(IdempotencyMismatch):
            await keys.run("alice", "k", "other", other)
        assert (work.runs, other.runs) == (1, 0)

    asyncio.run(main())


def test_a_wrong_repeat_does_not_make_a_right_one_at_the_same_time_wrong(make):
    async def main():
        work, keys = Worker(), make()
        await keys.run("alice", "k", "d", work)
        wrong = asyncio.ensure_future(keys.run("alice", "k", "other", work))
        right = asyncio.ensure_future(keys.run("alice", "k", "d", work))
        assert (await right).replayed
        with pytest.raises(IdempotencyMismatch):
            await wrong
        assert work.runs == 1

    asyncio.run(main())


def test_each_principal_has_keys_of_its_own(make):
    async def main():
        work, keys = Worker(), make()
        for principal in ("alice", "bob"):
            assert not (await keys.run(principal, "k", "d", work)).replayed
        assert work.runs == 2

    asyncio.run(main())


@pytest.mark.parametrize("where", ["claimed", "worked"])
def test_after_a_crash_what_does_not_last_is_done_again(tmp_path, where):
    argv = [sys.executable, "-c", DIES, str(tmp_path), where, "False"]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL

    async def main():
        answer = await Keys(store).run("alice", "k", "d", Worker(), lasting=False)
        assert not answer.replayed

    store = SqliteStore(str(tmp_path / "state"))
    try:
        asyncio.run(main())
    finally:
        store.close()


@pytest.mark.parametrize(
    ("where", "traces", "runs_again"),
    [("before", 0, True), ("claimed", 0, False), ("worked", 1, False), ("answered", 1, False)],
)
def test_a_crash_never_makes_it_run_twice(tmp_path, where, traces, runs_again):
    argv = [sys.executable, "-c", DIES, str(tmp_path), where, "True"]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL
    trace = tmp_path / "trace"
    assert (len(trace.read_text()) if trace.exists() else 0) == traces

    async def main():
        keys, work = Keys(store), Worker()
        if where in ("claimed", "worked"):
            assert store.get(IdempotencyRecord, "alice", "k").state == "interrupted"
            for _ in range(2):
                with pytest.raises(IdempotencyInterrupted, match="look at what it did"):
                    await keys.run("alice", "k", "d", work)
            with pytest.raises(IdempotencyMismatch):
                await keys.run("alice", "k", "other", work)
        else:
            answer = await keys.run("alice", "k", "d", work)
            assert answer.replayed is not runs_again
            assert answer.body == b"made"
        assert work.runs == int(runs_again)

    store = SqliteStore(str(tmp_path / "state"))
    try:
        asyncio.run(main())
    finally:
        store.close()


@pytest.mark.parametrize("error", [InvalidInput("bad"), Refused("no")])
def test_what_was_refused_before_anything_was_done_may_be_sent_again(make, error):
    async def main():
        keys, work = make(), Worker(error, threading.Event())
        tasks = [asyncio.ensure_future(keys.run("alice", "k", "d", work)) for _ in range(2)]
        await work.started()
        work.gate.set()
        for task in tasks:
            with pytest.raises(type(error)):
                await task
        good = Worker()
        assert not (await keys.run("alice", "k", "other", good)).replayed
        assert (work.runs, good.runs) == (1, 1)

    asyncio.run(main())


def test_what_failed_half_way_is_interrupted(make):
    async def main():
        keys, work = make(), Worker(OSError("broke"))
        with pytest.raises(OSError, match="broke"):
            await keys.run("alice", "k", "d", work)
        for again in (keys, make()):
            with pytest.raises(IdempotencyInterrupted):
                await again.run("alice", "k", "d", work)
        assert work.runs == 1

    asyncio.run(main())


def test_a_key_expires_after_its_request_has_ended(make, store, clock):
    async def main():
        keys, work = make(), Worker(gate=threading.Event())
        task = asyncio.ensure_future(keys.run("alice", "k", "d", work))
        await work.started()
        clock.now += 1000  # while it runs its key is held, whatever the clock says
        attached = asyncio.ensure_future(keys.run("alice", "k", "d", work))
        await asyncio.sleep(0)
        work.gate.set()
        await asyncio.gather(task, attached)
        clock.now += 99
        assert keys.sweep() == 0
        assert (await keys.run("alice", "k", "d", work)).replayed
        clock.now += 2
        assert not (await keys.run("alice", "k", "other", work)).replayed
        clock.now += 101
        assert keys.sweep() == 1
        assert store.find(IdempotencyRecord) == []
        assert work.runs == 2

    asyncio.run(main())


def test_a_full_table_forgets_the_oldest_that_ended_and_refuses_nobody(make, store, clock):
    async def main():
        bounds = {"keys": 3, "total_keys": 1000}
        keys, work = make(**bounds), Worker()
        for key in range(10):
            for lasting in (True, False):
                clock.now += 1
                done = await keys.run("alice", f"{key}{lasting}", "d", work, lasting=lasting)
                assert not done.replayed
        await keys.run("bob", "k", "d", work)
        for again in (keys, make(**bounds)):
            for key in ("8False", "9True", "9False"):
                assert (await again.run("alice", key, "d", work)).replayed
            assert (await again.run("bob", "k", "d", work)).replayed
        assert len(store.find(IdempotencyRecord, principal="alice")) == 3
        assert not (await keys.run("alice", "8True", "d", work)).replayed

    asyncio.run(main())


def test_what_runs_is_never_forgotten_for_others(make, store):
    async def main():
        gate = threading.Event()
        keys, slow, work = make(keys=2), Worker(gate=gate), Worker()
        task = asyncio.ensure_future(keys.run("alice", "slow", "d", slow))
        await slow.started()
        for key in range(5):
            await keys.run("alice", f"{key}", "d", work)
        assert store.get(IdempotencyRecord, "alice", "slow").state == "started"
        other = Worker(gate=gate)
        second = asyncio.ensure_future(keys.run("alice", "other", "d", other))
        await other.started()
        with pytest.raises(IdempotencyFull, match="run at once") as caught:
            await keys.run("alice", "third", "d", work)
        assert "when one of them has ended" in caught.value.remediation
        gate.set()
        await asyncio.gather(task, second)
        assert not (await keys.run("alice", "third", "d", work)).replayed

    asyncio.run(main())


def test_where_all_is_full_those_of_whoever_has_the_most_are_forgotten(make, store, clock):
    async def main():
        keys, work = make(total_keys=100), Worker()
        for key in range(95):
            await keys.run("hog", f"{key}", "d", work)
        for key in range(20):
            await keys.run(f"p{key}", "k", "d", work)
        for key in range(20):
            assert (await keys.run(f"p{key}", "k", "d", work)).replayed
        assert 0 < len(store.find(IdempotencyRecord, principal="hog")) < 95

    asyncio.run(main())


def test_of_too_many_bytes_the_oldest_answers_are_dropped_and_told(make, monkeypatch):
    monkeypatch.setattr(idempotency, "MAX_ANSWER", 10)

    async def main():
        bounds = {"bytes": 15, "total_bytes": 25}
        keys = make(**bounds)
        sizes = {"b": 11, "a": 10, "c": 5, "d": 1}
        for key, size in sizes.items():
            work = Worker(Answer(200, b"x" * size))
            assert len((await keys.run("alice", key, "d", work)).body) == size
        for again in (keys, make(**bounds)):
            assert (await again.run("alice", "d", "d", work)).body == b"x"
            for key in "ab":
                with pytest.raises(AnswerDropped, match="was done, with status 200"):
                    await again.run("alice", key, "d", work)
        for principal in ("bob", "carol", "dave"):
            await keys.run(principal, "k", "d", Worker(Answer(200, b"y" * 10)))
        assert sum(r.size for r in keys._store.find(IdempotencyRecord)) <= 25
        assert (await keys.run("dave", "k", "d", work)).body == b"y" * 10

    asyncio.run(main())


def test_an_answer_is_sealed_and_without_the_key_it_is_told_as_interrupted(make, store, tmp_path):
    async def main():
        work = Worker(Answer(200, b"secret-words", {"a": "b"}))
        await make().run("alice", "k", "d", work)
        for path in (tmp_path / "state").iterdir():
            assert b"secret-words" not in path.read_bytes()
        with pytest.raises(IdempotencyInterrupted) as caught:
            await Keys(store, key=b"1" * 32, clock=lambda: 1000.0).run("alice", "k", "d", work)
        assert "the key that sealed its answer is gone" in caught.value.cause
        moved = store.get(IdempotencyRecord, "alice", "k")
        store.write(lambda t: t.put(msgspec.structs.replace(moved, principal="bob")))
        with pytest.raises(IdempotencyInterrupted):
            await make().run("bob", "k", "d", work)
        assert (await make().run("alice", "k", "d", work)).body == b"secret-words"
        assert work.runs == 1

    asyncio.run(main())


def test_a_repeat_is_authorised_before_it_gets_anything(make):
    async def main():
        gate = threading.Event()
        work, keys, seen = Worker(gate=gate), make(), []

        def forbid(approved):
            seen.append(approved)
            raise Forbidden("no")

        def ask(authorise):
            return asyncio.ensure_future(keys.run("alice", "k", "d", work, authorise=authorise))

        first = ask(seen.append)
        await work.started()
        with pytest.raises(Forbidden):
            await ask(forbid)
        gate.set()
        assert not (await first).replayed
        # The one that may is not refused along with the one that may not.
        wrong, right = ask(forbid), ask(seen.append)
        with pytest.raises(Forbidden):
            await wrong
        assert (await right).replayed
        assert seen[0] is None and seen[-1] == frozenset()
        assert work.runs == 1

    asyncio.run(main())


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "ü", "a\n"])
def test_a_malformed_key_is_refused(make, key):
    async def main():
        work = Worker()
        with pytest.raises(InvalidInput, match="Idempotency-Key is malformed"):
            await make().run("alice", key, "d", work)
        assert work.runs == 0

    asyncio.run(main())


def test_when_the_store_fails_nothing_is_run(make, store):
    async def main():
        keys, work = make(), Worker()
        store.close()
        with pytest.raises(StoreError):
            await keys.run("alice", "k", "d", work)
        assert work.runs == 0

    asyncio.run(main())


def test_an_answer_that_cannot_be_recorded_is_given_once_and_never_made_again(make, store):
    async def main():
        keys, work = make(), Worker(Answer(200, os.urandom(500_000)))

        def fill():
            pages(store, 1)
            return work()

        assert await keys.run("alice", "k", "d", fill) == work.answer
        pages(store, 100_000)
        for again in (keys, make()):
            with pytest.raises(IdempotencyInterrupted):
                await again.run("alice", "k", "d", work)
        assert work.runs == 1

    asyncio.run(main())


def pages(store, count):
    def work(transaction):
        return transaction._connection.execute(f"PRAGMA max_page_count={count}").fetchall()

    return store.write(work)


def test_what_does_not_last_is_recorded_in_one_with_its_answer_or_taken_back(make, store):
    thing = IdempotencyRecord(
        principal="alice", key="thing", digest="d", state="done", created=0.0, expires=1e12
    )
    undone = []

    def work(count=100_000):
        pages(store, count)
        context.recorded().along(lambda t: t.put(thing), lambda: undone.append(1))
        return Answer(201, os.urandom(500_000))

    async def main():
        keys = make()
        await keys.run("alice", "first", "d", Worker(), lasting=False)
        with context.recording(lasting=False), pytest.raises(StoreError):
            await keys.run("alice", "k", "d", lambda: work(1), lasting=False)
        pages(store, 100_000)
        assert undone == [1]
        assert {record.key for record in store.find(IdempotencyRecord)} == {"first"}
        with context.recording(lasting=False):
            answer = await keys.run("alice", "k", "d", work, lasting=False)
        assert not answer.replayed
        assert undone == [1]
        assert {r.key for r in store.find(IdempotencyRecord)} == {"first", "k", "thing"}

    asyncio.run(main())


def test_nothing_is_written_of_what_does_not_last_and_was_refused(make, store):
    async def main():
        keys = make()
        await keys.run("alice", "first", "d", Worker(), lasting=False)
        with pytest.raises(Refused):
            await keys.run("alice", "k", "d", Worker(Refused("no")), lasting=False)
        assert (await keys.run("alice", "k", "d", Worker(), lasting=False)).status == 201
        with pytest.raises(IdempotencyMismatch):
            await keys.run("alice", "k", "other", Worker(), lasting=False)

    asyncio.run(main())
