"""Shared parts of operations: work done in slices, and starters that take no descriptors."""

import os
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from agentd.guest.operation import Channel, ChannelOperation, Quiet, RequestError, Starter

if TYPE_CHECKING:
    from agentd.guest.loop import Timer

# What a step may yield: the fields of an ``entries`` event to send, or nothing.
Steps = Generator[list[dict[str, object]] | None, None, dict[str, object]]


def plain(start: Callable[[Channel, dict[str, object]], ChannelOperation | None]) -> Starter:
    """Makes a Starter out of one that has no use for descriptors: those that came are closed."""

    def starter(
        channel: Channel, request: dict[str, object], fds: list[int]
    ) -> ChannelOperation | None:
        for fd in fds:
            os.close(fd)
        return start(channel, request)

    return starter


class SteppedOperation(Quiet):
    """Runs a generator, one step a turn of the loop, so that a big job holds up nothing else.

    A yielded list goes out as an ``entries`` event; the returned fields are the ``result``. It
    rests while the connection's buffer is full. It owns ``fd``, which the generator works on.
    """

    def __init__(self, channel: Channel, steps: Steps, fd: int) -> None:
        self._channel = channel
        self._steps = steps
        self._fd = fd
        self._timer: Timer | None = None
        self._resting = False
        self._closed = False

    def start(self) -> ChannelOperation | None:
        """Take the first step at once: most jobs have only one."""
        self._step()
        return None if self._closed else self

    def on_credit(self) -> None:
        if self._resting and not self._closed:
            self._resting = False
            self._step()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._steps.close()
        os.close(self._fd)

    def _step(self) -> None:
        self._timer = None
        if self._channel.credit() <= 0:
            self._resting = True
            return
        try:
            entries = next(self._steps)
        except StopIteration as end:
            self.close()
            self._channel.finish("result", **end.value)
            return
        except (OSError, RequestError) as error:
            self.close()
            self._channel.fail(error)
            return
        if entries is not None:
            self._channel.event("entries", entries=entries)
        if not self._closed:
            self._timer = self._channel.loop.after(0, self._step)
