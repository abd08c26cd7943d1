"""The commands of a daemon's sandboxes: asked for by id, or driven from here over a WebSocket."""

import threading
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

import msgspec

from agentd.client import arguments
from agentd.client.http import client as clients
from agentd.client.http import wire
from agentd.client.http.client import segment
from agentd.client.http.command import MAX_CAPTURE, RemoteCommand
from agentd.client.http.connection import NeverAsked, soon_or_never
from agentd.client.http.errors import Unreachable, from_event
from agentd.client.http.files import pieces
from agentd.client.http.killing import KILL_SECONDS, kill
from agentd.client.http.noun import HttpNoun
from agentd.model.api import ExecBody, ProcessView, ResultView, RunBody, SignalBody
from agentd.model.errors import AgentdError, Conflict
from agentd.model.output import MAX_OUTPUT, STREAMS, too_long
from agentd.model.result import Result
from agentd.model.running import execute
from agentd.model.spec import ExecRequest, Pty

if TYPE_CHECKING:
    from agentd.client.http.output import HttpOutput

T = TypeVar("T")
_PIECE = 256 << 10
# Stdin up to this size goes in the request; larger ones are streamed.
MAX_INLINE = 8 << 20


class HttpCommands(HttpNoun):
    """Implements ``client.ports.Commands``."""

    def exec(self, sandbox: str, body: ExecBody) -> ResultView:
        return self._exec(sandbox, body, ResultView, wait=True)

    def start(self, sandbox: str, body: ExecBody, *, cancel: int = -1) -> ProcessView:
        if cancel < 0:
            return self._exec(sandbox, body, ProcessView, wait=False)
        tag = body.tag or _new_tag()
        asked = msgspec.structs.replace(body, wait=False, tag=tag)
        return self._asked(sandbox, asked, ProcessView, tag, cancel)

    def run(self, body: RunBody) -> ResultView:
        return self._requests.call("POST", "/v1/run", body, into=ResultView, once=True)

    def list(self, sandbox: str) -> tuple[ProcessView, ...]:
        return self._requests.pages(f"{sandbox_path(sandbox)}/processes", ProcessView)

    def get(self, sandbox: str, process: str) -> ProcessView:
        return self._requests.call("GET", process_path(sandbox, process), into=ProcessView)

    def output(self, sandbox: str, process: str, stream: str = "stdout", start: int = 0) -> bytes:
        arguments.whole(start, "start", 0, arguments.MOST)
        path = f"{process_path(sandbox, process)}/output"
        query = {"stream": stream, "from": start, "follow": False}
        with self._requests.open("GET", path, query=query) as response:
            if lost := response.headers.get("agentd-lost"):
                raise Conflict(
                    f"bytes {lost} of {stream} of {process} are gone",
                    remediation=f"start={lost.partition('-')[2]} has what is kept",
                )
            found = bytes(response.read(MAX_OUTPUT + 1))
        if len(found) > MAX_OUTPUT:
            raise too_long(process, stream, start)
        return found

    def follow(
        self,
        sandbox: str,
        process: str,
        cursors: Mapping[str, int],
        notify: Callable[[], None],
        streams: Sequence[str] = STREAMS,
    ) -> "HttpOutput":
        from agentd.client.http.output import HttpOutput

        path = f"{process_path(sandbox, process)}/output"
        return HttpOutput(self._requests, path, cursors, notify, streams)

    def write(self, sandbox: str, process: str, data: bytes, *, eof: bool = False) -> None:
        path = f"{process_path(sandbox, process)}/stdin"
        with self._requests.open("POST", path, query={"eof": eof}, body=bytes(data)) as response:
            response.read()

    def signal(self, sandbox: str, process: str, signal: int = 15, target: str = "group") -> None:
        body = SignalBody(signal=signal, target=target)
        self._requests.call("POST", f"{process_path(sandbox, process)}/signal", body, ends=True)

    def resize(self, sandbox: str, process: str, rows: int, cols: int) -> None:
        body = Pty(rows=rows, cols=cols)
        self._requests.call("POST", f"{process_path(sandbox, process)}/resize", body)

    def _exec(self, sandbox: str, body: ExecBody, into: type[T], *, wait: bool) -> T:
        path, asked = f"{sandbox_path(sandbox)}/exec", msgspec.structs.replace(body, wait=wait)
        return self._requests.call("POST", path, asked, into=into, once=True)

    # --- driven from here ---

    def complete(
        self, sandbox: str, request: ExecRequest, stdin: bytes = b"", cancel: int = -1
    ) -> Result:
        if len(stdin) > MAX_INLINE:
            asked = msgspec.structs.replace(request, stdin=True)
            with self.begin(sandbox, asked, capture=True, cancel=cancel) as running:
                return execute(running, stdin, cancel)
        tag = _new_tag()
        body = wire.exec_body(
            msgspec.structs.replace(request, tag=tag, stdin=False), stdin or None, wait=True
        )
        # A unix socket's connection breaks with its daemon alone, and the command with that: a key,
        # which costs the daemon a write to disk, could only tell that it was interrupted.
        once = not self._requests.address.path
        view = self._asked(sandbox, body, ResultView, tag, cancel, once=once)
        return self._completed(sandbox, view)

    def begin(
        self, sandbox: str, request: ExecRequest, *, capture: bool = False, cancel: int = -1
    ) -> RemoteCommand:
        if cancel >= 0:
            request = msgspec.structs.replace(request, tag=request.tag or _new_tag())
        body = wire.exec_body(request, wait=False)
        view = self._asked(sandbox, body, ProcessView, request.tag, cancel)
        try:
            return RemoteCommand(
                self._requests,
                process_path(sandbox, view.id),
                view.id,
                pid=view.pid,
                stdin=request.stdin,
                pty=request.pty is not None,
                capture=capture,
                wake=cancel,
            )
        except BaseException:  # its caller cannot end what it was never given
            kill(self._requests, process_path(sandbox, view.id))
            raise

    def attach(
        self, sandbox: str, process: str, cursors: Mapping[str, int], *, capture: bool = False
    ) -> RemoteCommand:
        view = self.get(sandbox, process)
        return RemoteCommand(
            self._requests,
            process_path(sandbox, view.id),
            view.id,
            pid=view.pid,
            stdin=True,
            pty="pty" in view.output,
            capture=capture,
            cursors=cursors,
        )

    def events(
        self, sandbox: str, process: str, *, follow: bool = True
    ) -> Iterator[tuple[str, object]]:
        """Yield ("stdout" | "stderr" | "pty", bytes), ("lost", dict), last ("exit", view). To
        ``follow`` it goes on where the connection ends before the command."""
        if follow:
            return self._followed(sandbox, process)
        return self._until_now(sandbox, process)

    def _followed(self, sandbox: str, process: str) -> Iterator[tuple[str, object]]:
        told = threading.Event()
        with closing(self.follow(sandbox, process, {}, told.set)) as output:
            while told.wait():
                told.clear()
                while found := output.read(_PIECE):
                    for event in found:
                        if event.kind == "exit":
                            yield "exit", event.result or {}
                            return
                        end = event.offset + event.length
                        lost = {"stream": event.stream, "from": event.offset, "to": end}
                        yield ("lost", lost) if event.kind == "lost" else (event.stream, event.data)

    def _until_now(self, sandbox: str, process: str) -> Iterator[tuple[str, object]]:
        from agentd.client.http.sse import events

        path = f"{process_path(sandbox, process)}/output"
        headers = {"Accept": "text/event-stream"}
        query = {"follow": False}
        with self._requests.open("GET", path, query=query, headers=headers) as response:
            for event in events(response):
                if event.name in STREAMS:
                    yield event.name, b64decode(event.data)
                elif event.name in ("exit", "lost"):
                    yield event.name, msgspec.json.decode(event.data)
                elif event.name == "error":
                    raise from_event(event.data)

    def _asked(
        self,
        sandbox: str,
        body: ExecBody,
        into: type[T],
        tag: str | None,
        cancel: int,
        *,
        once: bool = True,
    ) -> T:
        """Have it begun. Once ``cancel`` is readable it is killed, by its ``tag``; one that has not
        begun a second later, as it waits for an approval, is left: then nobody approves it."""
        is_left, no_kill = soon_or_never(), soon_or_never(KILL_SECONDS)

        def give_up() -> bool:
            return tag is None or self._killed(sandbox, tag, cancel, no_kill) or is_left()

        path = f"{sandbox_path(sandbox)}/exec"
        on_wake = None if cancel < 0 else give_up
        try:
            return self._requests.call(
                "POST", path, body, into=into, once=once, wake=cancel, on_wake=on_wake
            )
        except (AgentdError, NeverAsked):
            raise
        except BaseException:
            # Interrupted: nobody waits for it any more.
            if tag is not None:
                self._killed(sandbox, tag, cancel, no_kill)
            raise

    def _killed(self, sandbox: str, tag: str, cancel: int, given_up: Callable[[], bool]) -> bool:
        """Kill the command with that tag; False where it has perhaps not begun yet. ``given_up``
        is asked while a daemon does not answer, once ``cancel`` is readable."""
        path, body = f"{process_path(sandbox, tag)}/signal", SignalBody(signal=9)
        on_wake = None if cancel < 0 else given_up
        try:
            self._requests.call("POST", path, body, ends=True, wake=cancel, on_wake=on_wake)
        except (Conflict, Unreachable):
            return True
        except AgentdError:
            return False
        return True

    def _completed(self, sandbox: str, view: ResultView) -> Result:
        """The answer holds the begin of a long output; the rest is in the journal."""
        found = wire.result(view)
        if not view.truncated or view.process is None:
            return found
        path = process_path(sandbox, view.process)
        stdout = found.stdout + self._rest(path, "stdout", len(found.stdout))
        stderr = found.stderr + self._rest(path, "stderr", len(found.stderr))
        cut = self._incomplete(sandbox, view.process, stdout=stdout, stderr=stderr)
        return msgspec.structs.replace(found, stdout=stdout, stderr=stderr, truncated=cut)

    def _incomplete(self, sandbox: str, process: str, **outputs: bytes) -> bool:
        """Whether something is missing beyond what the answer had no room for."""
        try:
            known = self.get(sandbox, process)
        except AgentdError:
            return True
        return (
            known.result is None
            or known.result.truncated
            or bool(known.lost)
            or any(len(data) < known.output.get(name, 0) for name, data in outputs.items())
        )

    def _rest(self, path: str, stream: str, begin: int) -> bytes:
        """Return what is kept of it from there on. An answer ends where some is lost amid it: what
        is behind that is asked for again, as is what a connection that breaks leaves."""
        found, at, before = bytearray(), begin, -1
        most = max(0, MAX_CAPTURE - begin)
        while len(found) < most and before < at:
            before = at
            query = {"stream": stream, "from": at, "follow": False}
            try:
                with self._requests.open("GET", f"{path}/output", query=query) as it:
                    at = int(it.headers.get("agentd-cursor", at))
                    for piece in pieces(it):
                        found += piece[: most - len(found)]
                        at += len(piece)
                        if len(found) == most:
                            break
                break
            except Unreachable:
                continue
            except AgentdError:
                break
        return bytes(found)


def _new_tag() -> str:
    """Return a name that a command can be killed by before its id is known."""
    return f"run-{clients.new_key()}"


def sandbox_path(id: str) -> str:
    return f"/v1/sandboxes/{segment(id)}"


def process_path(sandbox: str, process: str) -> str:
    return f"{sandbox_path(sandbox)}/processes/{segment(process)}"
