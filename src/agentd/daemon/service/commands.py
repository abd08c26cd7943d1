"""The commands of a caller's sandboxes, and what is followed of their output."""

from collections.abc import Callable, Mapping, Sequence

from agentd.daemon.commands.begin import check_run
from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun
from agentd.daemon.service.sandboxes import DaemonSandboxes
from agentd.model import typed
from agentd.model.api import ExecBody, ProcessView, ResultView, RunBody
from agentd.model.errors import Conflict, InvalidInput
from agentd.model.output import MAX_OUTPUT, STREAMS, OutputEvent, too_long
from agentd.sandbox.journal.events import Gap, JournalChunk
from agentd.sandbox.journal.follower import JournalFollower

_PIECE = 1 << 20


class FollowedOutput:
    """Implements ``model.output.Output`` by a follower of a journal."""

    def __init__(self, follower: JournalFollower) -> None:
        self._follower = follower

    def read(self, limit: int) -> Sequence[OutputEvent]:
        return [_event(event) for event in self._follower.read(limit)]

    def close(self) -> None:
        self._follower.close()


def _event(event: object) -> OutputEvent:
    if isinstance(event, JournalChunk):
        return OutputEvent("data", event.stream, event.offset, event.data, len(event.data))
    if isinstance(event, Gap):
        return OutputEvent("lost", event.stream, event.offset, b"", event.length)
    info = getattr(event, "info", b"")
    result = typed.decoder(ResultView).decode(info) if info else None
    return OutputEvent("exit", result=result)


class DaemonCommands(Noun):
    """Implements ``model.service.Commands``."""

    @observed("exec")
    def exec(self, sandbox: str, body: ExecBody) -> ResultView:
        return self._parts.commands.exec(self._who, self._live("run", sandbox), body)

    @observed("start")
    def start(self, sandbox: str, body: ExecBody) -> ProcessView:
        return self._parts.commands.start(self._who, self._live("run", sandbox), body)

    @observed("run")
    def run(self, body: RunBody) -> ResultView:
        self._who.require("run")
        check_run(body.exec)
        live = DaemonSandboxes(self._parts, self._who).made(body.sandbox)
        try:
            return self._parts.commands.exec(self._who, live, body.exec)
        finally:
            self._parts.sandboxes.end(live)

    @observed("processes")
    def list(self, sandbox: str) -> tuple[ProcessView, ...]:
        return tuple(c.view() for c in self._parts.commands.all(self._live("read", sandbox)))

    @observed("process")
    def get(self, sandbox: str, process: str) -> ProcessView:
        return self._parts.commands.get(self._live("read", sandbox), process).view()

    @observed("output")
    def output(self, sandbox: str, process: str, stream: str = "stdout", start: int = 0) -> bytes:
        if stream not in STREAMS:
            raise InvalidInput(
                f"there is no stream {stream[:64]!r}", remediation=f"there are {', '.join(STREAMS)}"
            )
        output = self.follow(sandbox, process, {stream: start}, lambda: None, (stream,))
        found = bytearray()
        try:
            while events := [e for e in output.read(_PIECE) if e.kind != "exit"]:
                for event in events:
                    if event.kind == "lost":
                        end = event.offset + event.length
                        raise Conflict(
                            f"bytes {event.offset}-{end} of {stream} of {process} are gone",
                            remediation=f"start={end} has what is kept",
                        )
                    found += event.data
                    if len(found) > MAX_OUTPUT:
                        raise too_long(process, stream, start)
        finally:
            output.close()
        return bytes(found)

    @observed("follow")
    def follow(
        self,
        sandbox: str,
        process: str,
        cursors: Mapping[str, int],
        notify: Callable[[], None],
        streams: Sequence[str] = STREAMS,
    ) -> FollowedOutput:
        command = self._parts.commands.get(self._live("read", sandbox), process)
        return FollowedOutput(command.journal.follow(cursors, streams=streams, notify=notify))

    @observed("stdin")
    def write(self, sandbox: str, process: str, data: bytes, *, eof: bool = False) -> None:
        self._parts.commands.get(self._live("run", sandbox), process).write(data, eof=eof)

    @observed("signal")
    def signal(self, sandbox: str, process: str, signal: int = 15, target: str = "group") -> None:
        self._parts.commands.get(self._live("run", sandbox), process).signal(signal, target)

    @observed("resize")
    def resize(self, sandbox: str, process: str, rows: int, cols: int) -> None:
        self._parts.commands.get(self._live("run", sandbox), process).resize(rows, cols)
