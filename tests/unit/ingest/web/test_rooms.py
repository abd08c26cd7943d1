import asyncio
import threading
from collections.abc import Callable

import pytest
from tests.unit.ingest.fake import until

from agentd.ingest.web import rooms
from agentd.ingest.web.rooms import Room
from agentd.model.errors import Full


def _names() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("http-")]


async def _run(room: Room, call: Callable[..., object], *args: object) -> object:
    return await room.run(call, *args)


def test_a_value_and_an_error_come_back() -> None:
    async def main() -> None:
        room = Room("test", 2)
        assert await room.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await room.run(divmod, 7, 0)
        assert len(_names()) == 1  # one after the other needs one thread
        room.close()

    asyncio.run(main())
    until(lambda: not _names())


def test_one_more_is_refused_and_a_cancelled_one_still_counts() -> None:
    async def main() -> None:
        room = Room("test", 1)
        go_on = threading.Event()
        task = asyncio.create_task(_run(room, go_on.wait))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(Full):
            await room.run(int)
        go_on.set()
        while True:
            try:
                assert await room.run(int) == 0
                break
            except Full:
                await asyncio.sleep(0.01)
        room.close()

    asyncio.run(main())
    until(lambda: not _names())


def test_with_a_queue_one_more_waits_its_turn() -> None:
    async def main() -> None:
        room = Room("test", 2, queue=True)
        most = [0, 0]
        lock = threading.Lock()

        def work() -> None:
            with lock:
                most[0] += 1
                most[1] = max(most)
            with lock:
                most[0] -= 1

        await asyncio.gather(*(room.run(work) for _ in range(50)))
        assert most[1] <= 2
        assert len(_names()) <= 2
        room.close()

    asyncio.run(main())
    until(lambda: not _names())


def test_each_caller_has_a_share_and_the_next_one_finds_room() -> None:
    async def main() -> None:
        room, go_on = Room("test", 8), threading.Event()
        tasks, refused = [], {}
        for name in ("hog", "second", "third"):
            rooms.caller.set(name)
            mine = [asyncio.create_task(_run(room, go_on.wait)) for _ in range(8)]
            await asyncio.sleep(0)
            refused[name] = sum(task.done() for task in mine)
            tasks += mine
        assert refused == {"hog": 4, "second": 6, "third": 7}
        go_on.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(one, Full) for one in done) == 17
        assert room._busy == 0 and not room._of
        room.close()

    asyncio.run(main())


def test_a_queue_goes_round_its_callers() -> None:
    async def main() -> None:
        room, go_on, order = Room("test", 2, queue=True), threading.Event(), list[str]()
        hog = [asyncio.create_task(_as("hog", room, go_on.wait))]
        hog += [asyncio.create_task(_as("hog", room, order.append, "hog")) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.create_task(_as("other", room, order.append, "other"))
        assert order == ["other"]
        go_on.set()
        await asyncio.gather(*hog)
        room.close()

    async def _as(name: str, room: Room, call: Callable[..., object], *args: object) -> None:
        rooms.caller.set(name)
        await room.run(call, *args)

    asyncio.run(main())


def test_those_who_wait_are_let_in_by_turns() -> None:
    """Whoever has more to do is no sooner: each gets one, then the next."""

    async def main() -> None:
        room, go_on, order = Room("test", 1, queue=True), threading.Event(), list[str]()
        tasks = []
        for name, call in (("hog", go_on.wait), *((n, order.append) for n in "aaabbc")):
            rooms.caller.set(name)
            args = (name,) if call == order.append else ()
            tasks.append(asyncio.create_task(_run(room, call, *args)))
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(*tasks)
        assert order == list("abcaba")
        room.close()

    asyncio.run(main())


def test_a_thread_with_nothing_to_do_ends_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "_IDLE", 0.05)

    async def main() -> None:
        room = Room("test", 2)
        for _ in range(3):
            assert await room.run(int) == 0
            while _names():
                await asyncio.sleep(0.01)
        room.close()

    asyncio.run(main())


def test_a_call_that_outlives_its_loop_harms_nobody() -> None:
    go_on = threading.Event()

    async def main() -> Room:
        room = Room("test", 1)
        task = asyncio.create_task(_run(room, go_on.wait))
        await asyncio.sleep(0)
        task.cancel()
        return room

    room = asyncio.run(main())
    room.close()
    go_on.set()
    until(lambda: not _names())
