"""What a daemon knows a command by: its id, where its output is kept, who may reach it."""

import time
from typing import TYPE_CHECKING

import msgspec

from agentd.daemon.commands.ends import INTERRUPTED, CommandLost, ours
from agentd.daemon.commands.errands import Errands
from agentd.daemon.commands.views import ENDED, RUNNING, bare, lost_bytes
from agentd.model.api import ProcessView, ResultView
from agentd.model.errors import AgentdError, Conflict
from agentd.sandbox import guard
from agentd.sandbox.journal.events import LIMIT
from agentd.sandbox.journal.journal import Journal
from agentd.transport.core import LostOutput

if TYPE_CHECKING:
    from agentd.daemon.sandboxes.live import Live


class Listed:
    """``adopted``: its daemon before began it."""

    def __init__(
        self,
        id_: str,
        live: "Live",
        argv: tuple[str, ...],
        journal: Journal,
        *,
        tag: str | None = None,
        pty: bool = False,
        started: float | None = None,
        adopted: bool = False,
    ) -> None:
        self.id = id_
        self.live = live
        self.argv = argv
        self.journal = journal
        self.tag = tag
        self.started = time.time() if started is None else started
        self.ended: float | None = None
        self.errands = Errands(self.over)
        self._pty = pty
        self._adopted = adopted

    def take(self, stream: str, data: bytes) -> None:
        """Into the journal."""
        kept_as = "pty" if self._pty else stream
        if isinstance(data, LostOutput):
            self.journal.skip(kept_as, data.length, LIMIT)
        else:
            self.journal.append(kept_as, data)

    def wrote_more_than(self, size: int) -> bool:
        """Any stream of it."""
        return max(self.journal.offsets.values(), default=0) > size

    def conclude(self, view: ResultView) -> None:
        """Tell who follows it that it has ended; nothing more is done for it."""
        try:
            self.journal.finish(msgspec.json.encode(bare(view)))
        finally:
            self.ended = time.time()
            self.errands.close()

    def as_told(self, error: Exception, pid: int | None) -> AgentdError:
        """Return what ended it, as its caller is told."""
        if not isinstance(error, AgentdError):
            guard.tell(error)
        elif self._adopted and pid is None:
            return CommandLost(INTERRUPTED.message)  # as its record tells it
        return ours(error)

    def over(self) -> Conflict:
        return Conflict(f"process {self.id} has ended")

    def view(self, pid: int | None, result: ResultView | None) -> ProcessView:
        offsets = {name: count for name, count in self.journal.offsets.items() if count}
        return ProcessView(
            id=self.id,
            sandbox=self.live.id,
            argv=self.argv,
            tag=self.tag,
            pid=pid,
            state=ENDED if result is not None else RUNNING,
            started=self.started,
            output=offsets,
            lost=lost_bytes(self.journal),
            result=None if result is None else bare(result),
        )
