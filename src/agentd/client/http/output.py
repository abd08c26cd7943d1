"""A follower of a command's output at a daemon: what comes is read ahead, and asked for again from
its cursors on where the connection breaks."""

import http.client
import os
import threading
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import msgspec

from agentd.client.cut import Cut, GivenUp
from agentd.client.http.client import DELAYS, HttpClient
from agentd.client.http.errors import Unreachable, from_event
from agentd.client.http.sse import ServerEvent, events
from agentd.model.api import ResultView
from agentd.model.errors import AgentdError, InvalidInput
from agentd.model.output import STREAMS, OutputEvent

AHEAD = 1 << 20  # bytes that wait for ``read``; then the daemon does


class _Lost(msgspec.Struct, rename={"from_": "from"}):
    stream: str
    from_: int
    to: int


class HttpOutput:
    """Implements ``model.output.Output``, with a thread of its own until it is closed.

    ``path`` is that of the process's output. Raises what the daemon says; ``read`` raises
    Unreachable where the connection broke and there is no new one.
    """

    def __init__(
        self,
        client: HttpClient,
        path: str,
        cursors: Mapping[str, int],
        notify: Callable[[], None],
        streams: Sequence[str] = STREAMS,
    ) -> None:
        if not streams or not set(streams) <= set(STREAMS):
            raise InvalidInput(
                f"there are no streams {tuple(streams)!r}",
                remediation=f"there are {', '.join(STREAMS)}",
            )
        self._client = client
        self._path = path
        self._notify = notify
        self._streams = tuple(streams)
        self._cursors = {name: cursors.get(name, 0) for name in STREAMS}
        self._events: deque[OutputEvent] = deque()
        self._size = 0
        self._error: AgentdError | None = None
        self._over = False  # the exit has come
        self._closed = False
        self._changed = threading.Condition()
        self._cut = Cut()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            first = self._open()
        except BaseException:
            os.close(self._wake)
            raise
        work = partial(self._cut.run, partial(self._run, *first))
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def read(self, limit: int) -> Sequence[OutputEvent]:
        found: list[OutputEvent] = []
        size = 0
        with self._changed:
            while self._events and (not found or size + len(self._events[0].data) <= limit):
                found.append(self._events.popleft())
                size += len(found[-1].data)
            self._size -= size
            self._changed.notify()
            if not found and self._error is not None:
                raise self._error
        return found

    def close(self) -> None:
        """Close the connection. Idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        os.eventfd_write(self._wake, 1)
        self._cut.set()  # it may wait for another connection, or for what that answers
        if self._thread is not threading.current_thread():  # as it is where ``notify`` closes it
            self._thread.join()
        os.close(self._wake)

    # --- its thread ---

    def _run(self, stack: ExitStack, response: http.client.HTTPResponse) -> None:
        try:
            fruitless = 0
            while not self._is_done():
                before = dict(self._cursors)
                try:
                    with stack:
                        self._take(events(response))
                except (OSError, http.client.HTTPException, Unreachable):
                    pass  # asked for again
                if self._is_done():
                    return
                fruitless = fruitless + 1 if self._cursors == before else 0
                if fruitless > len(DELAYS):
                    raise Unreachable(
                        f"the connection to {self._client.address} breaks again and again",
                        remediation="the command may still run: follow it later",
                    )
                self._cut.sleep(DELAYS[fruitless - 1] if fruitless else 0.0)
                stack, response = self._open()
        except GivenUp:
            return
        except AgentdError as error:
            with self._changed:
                self._error = error
            self._notify()

    def _is_done(self) -> bool:
        return self._over or self._closed

    def _open(self) -> tuple[ExitStack, http.client.HTTPResponse]:
        at = [str(self._cursors[name]) for name in STREAMS]
        headers = {"Accept": "text/event-stream", "Last-Event-ID": ":".join(at)}
        query = {"stream": self._streams[0]} if len(self._streams) == 1 else {}
        stack = ExitStack()
        answer = self._client.open("GET", self._path, query=query, headers=headers, wake=self._wake)
        return stack, stack.enter_context(answer)

    def _take(self, found: Iterable[ServerEvent]) -> None:
        for event in found:
            known = self._event(event)
            if known is None:
                continue
            with self._changed:
                while self._size >= AHEAD and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                self._events.append(known)
                self._size += len(known.data)
                self._over = known.kind == "exit"
            self._notify()
            if self._over:
                return

    def _event(self, event: ServerEvent) -> OutputEvent | None:
        if event.name == "error":
            raise from_event(event.data)
        if event.name == "exit":
            data = event.data.encode()
            view = None if data == b"{}" else self._client.decode(ResultView, data)
            return OutputEvent("exit", result=view)
        if event.name == "lost":
            gone = self._client.decode(_Lost, event.data.encode())
            known = OutputEvent("lost", gone.stream, gone.from_, length=gone.to - gone.from_)
        elif event.name in STREAMS:
            data = b64decode(event.data)
            known = OutputEvent("data", event.name, self._cursors[event.name], data, len(data))
        else:
            return None
        if known.stream in self._cursors:
            self._cursors[known.stream] = known.offset + known.length
        return known if known.stream in self._streams else None
