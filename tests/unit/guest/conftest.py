"""A channel that records what an operation sends, driven by a real loop."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentd.guest import wire
from agentd.guest.loop import Loop
from agentd.guest.operation import RequestError, Starter

DEADLINE_S = 120.0


class FakeChannel:
    def __init__(self, loop: Loop, credit: int, regrant: int) -> None:
        self.loop = loop
        self.events: list[dict[str, Any]] = []
        self.frames: list[tuple[int, bytes]] = []
        self.granted = 0
        self.window = credit
        self.regrant = regrant
        self.last: dict[str, Any] | None = None
        self.operation: Any = None
        self.until: Callable[[], bool] | None = None

    @property
    def data(self) -> bytes:
        return b"".join(data for kind, data in self.frames if kind == wire.DATA)

    def start(self, starter: Starter, **request: object) -> "FakeChannel":
        """What the connection does: the operation, or the refusal as an ``error`` event."""
        try:
            self.operation = starter(self, request, [])
        except (OSError, RequestError) as error:
            self.fail(error)
        return self

    def run(self, until: Callable[[], bool] | None = None) -> "FakeChannel":
        """Turn the loop until the channel has ended, or ``until`` holds after something sent."""
        self.until = until or (lambda: self.last is not None)
        if not self.until():
            late = []
            timer = self.loop.after(DEADLINE_S, lambda: (late.append(1), self.loop.stop()))
            self.loop.run()
            timer.cancel()
            assert not late, f"nothing more came: {self.events[-3:]}"
            assert self.until(), f"the loop ran dry: {self.events[-3:]}"
        self.until = None
        return self

    def give(self, amount: int) -> None:
        self.window += amount
        if self.operation is not None and self.last is None:
            self.operation.on_credit()

    def event(self, name: str, **fields: object) -> None:
        assert self.last is None, "an event after the last one"
        self.events.append({"event": name, **fields})
        self._check()

    def finish(self, name: str, **fields: object) -> None:
        self.event(name, **fields)
        self.last = self.events[-1]
        if self.operation is not None:
            self.operation.close()
        self._check()

    def fail(self, error: Exception) -> None:
        self.finish("error", errno=getattr(error, "errno", 0) or 0, message=str(error))

    def send(self, kind: int, data: bytes) -> None:
        assert 0 < len(data) <= min(self.window, wire.MAX_PAYLOAD)
        self.window -= len(data)
        self.frames.append((kind, data))
        if self.regrant:
            self.loop.after(0, lambda: self.give(len(data)))
        self._check()

    def send_eof(self) -> None:
        self.frames.append((wire.DATA_EOF, b""))
        self._check()

    def credit(self) -> int:
        return self.window

    def grant(self, amount: int) -> None:
        self.granted += amount
        self._check()

    def _check(self) -> None:
        if self.until is not None and self.until():
            self.loop.stop()


@pytest.fixture
def new_channel() -> Iterator[Callable[..., FakeChannel]]:
    """``new_channel(credit=..., regrant=...)``; every operation is closed at the end."""
    loop = Loop()
    made: list[FakeChannel] = []

    def new(credit: int = wire.INITIAL_WINDOW, regrant: bool = True) -> FakeChannel:
        made.append(FakeChannel(loop, credit, regrant))
        return made[-1]

    yield new
    for channel in made:
        if channel.operation is not None and channel.last is None:
            channel.operation.close()
    loop.close()
