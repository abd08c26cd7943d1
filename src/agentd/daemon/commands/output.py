"""A follower of a journal, in the words of the ways in."""

from collections.abc import Sequence

from agentd.model import typed
from agentd.model.api import ResultView
from agentd.model.output import OutputEvent
from agentd.sandbox.journal.events import Gap, JournalChunk
from agentd.sandbox.journal.follower import JournalFollower


class FollowedOutput:
    """Implements ``model.output.Output``."""

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
