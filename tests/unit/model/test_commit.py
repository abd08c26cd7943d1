"""Group commit under many threads: nothing is lost, done twice, reordered or left waiting."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.model import commit
from agentd.model.commit import GroupCommit, Job, NotTaken

Commit = Callable[[Sequence[Job[Any, Any]], bool], Sequence[Any]]


class Disk:
    """Notes what is committed, and whether two ever commit at once. ``broken`` commits fail."""

    def __init__(self, broken: Callable[[Any], bool] = lambda work: False) -> None:
        self.written: list[Any] = []
        self.batches: list[int] = []
        self._broken = broken
        self._alone = threading.Lock()

    def commit(self, batch: Sequence[Job[Any, Any]], is_thread: bool) -> list[Any]:
        assert self._alone.acquire(blocking=False), "two commit at once"
        try:
            self.batches.append(len(batch))
            if any(self._broken(job.work) for job in batch):
                raise OSError("no space left")
            self.written += [job.work for job in batch]
            return [job.work for job in batch]
        finally:
            self._alone.release()


@contextmanager
def group(commit: Commit) -> Iterator[GroupCommit[Any, Any]]:
    ended = threading.Event()
    made: GroupCommit[Any, Any] = GroupCommit("committing", commit, ended.set)
    made.start()
    try:
        yield made
    finally:
        made.close()
        assert ended.is_set() and not made.works


def test_alone_its_own_thread_commits_and_nobody_is_woken() -> None:
    seen: list[int] = []

    def commit(batch: Sequence[Job[Any, Any]], is_thread: bool) -> list[Any]:
        seen.append(threading.get_ident())
        return [is_thread for _ in batch]

    with group(commit) as commits, ThreadPoolExecutor(1) as pool:
        mine = pool.submit(threading.get_ident).result()
        assert pool.submit(commits.do, "a").result(60) is False
        assert seen == [mine]
        # A handler of a signal may raise in the main thread: another commits for it.
        assert commits.do("b") is True


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    threads=st.integers(1, 8),
    most=st.integers(1, 9),
    bytes_=st.sampled_from([1, 40, 1 << 20]),
)
def test_all_is_committed_once_in_order_and_answered(
    seed: int, threads: int, most: int, bytes_: int
) -> None:
    disk = Disk()
    with pytest.MonkeyPatch.context() as patch, group(disk.commit) as commits:
        patch.setattr(commit, "MAX_BATCH", most)
        patch.setattr(commit, "MAX_BATCH_BYTES", bytes_)

        def work(thread: int) -> None:
            choose = random.Random(seed + thread)  # noqa: S311
            later: list[tuple[Any, Job[Any, Any]]] = []
            for number in range(30):
                mine, size = (thread, number), choose.randrange(30)
                if choose.random() < 0.5:
                    assert commits.do(mine, size=size) == mine
                else:
                    lazily = choose.choice((0.0, 0.0005, 60.0))
                    later.append((mine, commits.submit(mine, size=size, lazily=lazily)))
            commits.do((thread, 30))
            # What was handed in before is written before: FIFO, the lazy included.
            assert all(future.result(0) == mine for mine, future in later)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    for thread in range(threads):
        assert [n for t, n in disk.written if t == thread] == list(range(31))
    assert max(disk.batches) <= most


def test_what_fails_is_told_to_all_of_its_batch_and_the_next_works() -> None:
    disk = Disk(broken=lambda work: work[1] % 7 == 3)
    told: list[Any] = []

    def work(thread: int) -> None:
        for number in range(60):
            try:
                assert commits.do((thread, number)) == (thread, number)
            except OSError:
                told.append((thread, number))

    with group(disk.commit) as commits, ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    everything = {(thread, number) for thread in range(6) for number in range(60)}
    assert {*told} | {*disk.written} == everything
    assert not {*told} & {*disk.written} and len(told) >= 6 * 9


def test_a_commit_that_settles_nothing_leaves_nobody_waiting() -> None:
    with group(lambda batch, is_thread: ()) as commits, ThreadPoolExecutor(1) as pool:
        with pytest.raises(RuntimeError, match="settled nothing"):
            commits.do("a")
        with pytest.raises(RuntimeError, match="settled nothing"):
            pool.submit(commits.do, "b").result(60)
        with pytest.raises(RuntimeError, match="settled nothing"):
            commits.submit("c").result(60)


@pytest.mark.parametrize(("most", "bytes_"), [(3, 1 << 20), (99, 30)])
def test_too_much_that_waits_is_refused_with_its_number(
    monkeypatch: pytest.MonkeyPatch, most: int, bytes_: int
) -> None:
    monkeypatch.setattr(commit, "MAX_WAITING", most)
    monkeypatch.setattr(commit, "MAX_WAITING_BYTES", bytes_)
    disk, begun, goes_on = Disk(), threading.Event(), threading.Event()

    def slow(batch: Sequence[Job[Any, Any]], is_thread: bool) -> list[Any]:
        begun.set()
        assert goes_on.wait(60)
        return disk.commit(batch, is_thread)

    with group(slow) as commits:
        taken = [commits.submit(0, size=10)]
        assert begun.wait(60)
        taken += [commits.submit(number, size=10) for number in (1, 2, 3)]
        for hand_in in (commits.submit, commits.do):
            with pytest.raises(NotTaken) as refused:
                hand_in(4, size=10)
            assert (refused.value.waiting, refused.value.size) == (3, 30)
        goes_on.set()
        assert [future.result(60) for future in taken] == [0, 1, 2, 3]
        assert commits.do(5) == 5  # there is room again


def test_a_batch_takes_so_many_bytes_and_the_work_that_exceeds_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commit, "MAX_BATCH_BYTES", 25)
    disk = Disk()
    with group(disk.commit) as commits:
        with commits.alone():
            taken = [commits.submit(number, size=10) for number in range(10)]
        assert [future.result(60) for future in taken] == list(range(10))
    assert disk.batches == [3, 3, 3, 1]


def test_what_was_taken_before_the_end_is_committed_and_the_rest_refused() -> None:
    disk = Disk()
    taken: list[Any] = []
    begun = threading.Barrier(5)

    def work(thread: int) -> None:
        begun.wait(60)
        number = 0
        while True:
            try:
                taken.append(commits.do((thread, number)))
                number += 1
            except NotTaken as end:
                assert end.waiting == 0
                return

    with ThreadPoolExecutor(4) as pool:
        with group(disk.commit) as commits:
            ends = [pool.submit(work, thread) for thread in range(4)]
            begun.wait(60)
            lazy = commits.submit("lazy", lazily=60.0)
            commits.do("some")
        for end in ends:
            end.result(60)
    assert lazy.result(0) == "lazy"
    assert sorted(map(str, taken)) == sorted(
        str(work) for work in disk.written if work not in ("lazy", "some")
    )


def test_nothing_is_committed_while_one_looks_alone() -> None:
    disk = Disk()
    with group(disk.commit) as commits, ThreadPoolExecutor(2) as pool:
        with commits.alone() as mine:
            assert mine
            waits = pool.submit(commits.do, "a")
            later = commits.submit("b")
            with commits.alone() as another:
                assert not another
            assert not disk.written
        assert waits.result(60) == "a" and later.result(60) == "b"
    with commits.alone() as mine:
        assert not mine  # it is closed


def test_the_thread_comes_when_it_is_due_without_any_work() -> None:
    came = threading.Event()
    disk = Disk()

    def commit(batch: Sequence[Job[Any, Any]], is_thread: bool) -> list[Any]:
        if batch:
            commits.due = 1e-9  # long ago
        else:
            commits.due = 0.0
            came.set()
        return disk.commit(batch, is_thread)

    with group(commit) as commits, ThreadPoolExecutor(1) as pool:
        pool.submit(commits.do, "a").result(60)
        assert came.wait(60)
