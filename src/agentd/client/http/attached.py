"""What a daemon says, in texts, to who is attached to a command."""

import msgspec

from agentd.model import typed
from agentd.model.api import ErrorView, ProcessView, ResultView


class AttachedEvent(msgspec.Struct, rename={"from_": "from"}):
    event: str
    stream: str = ""
    from_: int = 0
    to: int = 0
    process: ProcessView | None = None
    result: ResultView | None = None
    error: ErrorView | None = None


EVENT = typed.decoder(AttachedEvent)
