"""The queue between the loop and a thread: bounded, in order, and told of either side's end."""

import asyncio
import select
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentd.ingest.web.bridge import Bridge, FollowerGone, fill
from agentd.ingest.web.followed import Followed
from agentd.ingest.web.rooms import Room
from agentd.model.errors import Full, NotFound

MOST = 100


def on_a_loop(work: Callable[[], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with asyncio.timeout(60):
            return await work()

    return asyncio.run(run())


def test_what_the_loop_puts_a_thread_takes_in_order_and_bounded() -> None:
    most = 0

    async def work() -> list[bytes]:
        nonlocal most
        bridge: Bridge[bytes] = Bridge(MOST)
        taking = asyncio.create_task(asyncio.to_thread(list, bridge))
        for n in range(300):
            await bridge.put(b"%d" % n, 40)
            most = max(most, bridge._size)
        bridge.end()
        return await taking

    assert on_a_loop(work) == [b"%d" % n for n in range(300)]
    assert most <= MOST + 40


def test_what_a_thread_gives_the_loop_takes_in_order_and_bounded() -> None:
    most = 0

    async def work() -> list[int]:
        nonlocal most
        bridge: Bridge[int] = Bridge(MOST)

        def give() -> None:
            nonlocal most
            for n in range(300):
                bridge.give(n, 40)
                most = max(most, bridge._size)
            bridge.end()

        giving = asyncio.create_task(asyncio.to_thread(give))
        found: list[int] = []
        while (some := await bridge.take()) is not None:
            found += some
        await giving
        return found

    assert on_a_loop(work) == list(range(300))
    assert most <= MOST + 40


def test_an_idle_end_is_told_at_each_beat() -> None:
    async def work() -> None:
        bridge: Bridge[int] = Bridge(MOST)
        assert await bridge.take(0.001) == []
        assert bridge.offer(1, 1)
        assert await bridge.take(60) == [1]
        assert await bridge.take(0.001) == []

    on_a_loop(work)


def test_an_error_comes_behind_what_came_before_it() -> None:
    async def broken() -> Any:
        yield b"a"
        raise NotFound("no more")

    async def work() -> list[bytes]:
        bridge: Bridge[bytes] = Bridge(MOST)
        await fill(bridge, broken())
        found: list[bytes] = []
        with pytest.raises(NotFound):
            await asyncio.to_thread(lambda: found.extend(bridge))
        return found

    # What is before it is given to whoever iterates, in one go or none.
    assert on_a_loop(work) == [b"a"]


def test_who_gives_is_told_when_nobody_takes_any_more() -> None:
    async def work() -> None:
        bridge: Bridge[int] = Bridge(MOST)
        full = threading.Event()

        def give() -> None:
            bridge.give(1, MOST + 1)
            assert not bridge.offer(2, 1), "it is full"
            full.set()
            bridge.give(3, 1)

        giving = asyncio.create_task(asyncio.to_thread(give))
        await asyncio.to_thread(full.wait, 60)
        bridge.close()
        with pytest.raises(FollowerGone):
            await giving
        await bridge.put(4, MOST + 1)  # dropped, and it does not wait
        await bridge.put(5, 1)
        bridge.end()
        assert await bridge.take() == [1]
        assert await bridge.take() is None

    on_a_loop(work)


def test_a_call_is_followed_to_its_result_or_its_error() -> None:
    async def work() -> None:
        room = Room("x", 8)  # the first may hold its place for a moment more

        def call(bridge: Bridge[int], wake: int) -> str:
            bridge.give(1, 1)
            return "done"

        def fails(bridge: Bridge[int], wake: int) -> str:
            raise NotFound("nothing")

        followed = Followed(MOST, call)
        followed.start(room)
        assert await followed.first() == [1]
        assert [p async for p in followed.pieces(60)] == []
        assert followed.result() == "done"
        followed.stop()
        other = Followed(MOST, fails)
        other.start(room)
        with pytest.raises(NotFound):
            await other.first()
        other.stop()
        room.close()

    on_a_loop(work)


def test_a_call_that_finds_no_room_is_refused_before_it_begins() -> None:
    async def work() -> None:
        room, go = Room("x", 2), threading.Event()
        first = room.run(go.wait, 60)
        refused = Followed(MOST, lambda bridge, wake: None)
        with pytest.raises(Full):
            refused.start(room)
        refused.stop()
        go.set()
        await first
        room.close()

    on_a_loop(work)


def test_a_call_that_was_taken_runs_though_nobody_follows_it_any_more() -> None:
    """It is told so at once; what it writes down has a beginning and an end."""

    async def work() -> None:
        room = Room("x", 4)

        def call(bridge: Bridge[int], wake: int) -> str:
            assert select.select([wake], [], [], 60)[0]
            with pytest.raises(FollowerGone):
                bridge.give(1, 1)
            return "cancelled"

        followed = Followed(MOST, call)
        followed.start(room)
        followed.stop()  # often before its thread has begun
        assert [p async for p in followed.pieces(60)] == []
        assert followed.result() == "cancelled"
        room.close()

    on_a_loop(work)


def test_a_call_that_no_thread_can_be_had_for_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def work() -> None:
        followed = Followed(MOST, lambda bridge, wake: None)
        monkeypatch.setattr(threading.Thread, "start", full)
        with pytest.raises(Full):
            followed.start(Room("x", 4))
            await followed.first()
        monkeypatch.undo()
        followed.stop()
        assert followed._wake == followed._waker == -1

    on_a_loop(work)
