"""A command that ended under a daemon before: what its record and its journal still tell."""

from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from agentd.daemon.commands.begin import shortened
from agentd.daemon.commands.ends import INTERRUPTED, status
from agentd.daemon.commands.listed import ENDED, bare, lost_bytes
from agentd.daemon.store.records import ProcessRecord
from agentd.model import typed
from agentd.model.api import ProcessView, ResultView
from agentd.model.control import check_signal, check_window
from agentd.model.errors import Conflict
from agentd.model.result import Exit, Timing, Usage
from agentd.model.typed import like
from agentd.sandbox.journal.journal import Journal
from agentd.sandbox.journal.journals import Journals

if TYPE_CHECKING:
    from agentd.daemon.sandboxes.live import Live

_UNKNOWN = Exit(None, None, INTERRUPTED, Usage())
_decode = typed.decoder(ResultView).decode


class Past:
    """A command that has ended, with what can be read of a ``Command``. Thread-safe."""

    def __init__(self, live: "Live", record: ProcessRecord, journals: Journals) -> None:
        self.id = record.id
        self.live = live
        self.tag = record.tag
        argv, self._argv_cut = shortened(record.argv)
        self._record = msgspec.structs.replace(record, argv=argv)
        self._journals = journals

    @cached_property
    def journal(self) -> Journal:
        """The journal, opened when it is asked for. Raises OSError."""
        found = self._journals.open(self._record.journal or f"{self.live.id}/{self.id}")
        # One that the daemon before could not end in time goes no further: say so to who follows.
        found.finish(msgspec.json.encode(self._from_record()))
        return found

    @cached_property
    def result(self) -> ResultView:
        """Read how it ended in its journal, else in its record."""
        try:
            return bare(_decode(self.journal.info or b""))
        except msgspec.DecodeError:
            return self._from_record()

    def view(self) -> ProcessView:
        record, offsets = self._record, self.journal.offsets
        return ProcessView(
            id=self.id,
            sandbox=self.live.id,
            argv=record.argv,
            argv_cut=self._argv_cut,
            tag=self.tag,
            pid=record.pid,
            state=ENDED,
            started=record.created,
            output={name: count for name, count in offsets.items() if count},
            lost=lost_bytes(self.journal),
            result=self.result,
        )

    def write(self, data: bytes, *, eof: bool = False) -> None:
        raise self._over()

    def signal(self, number: int, target: str = "group") -> None:
        check_signal(number, target)
        raise self._over()

    def resize(self, rows: int, cols: int) -> None:
        check_window(rows, cols)
        raise self._over()

    def _over(self) -> Conflict:
        return Conflict(f"process {self.id} has ended")

    def _from_record(self) -> ResultView:
        record, handle = self._record, self.live.handle
        end = record.exit or _UNKNOWN
        return like(
            ResultView,
            end,
            request_id=record.request,
            status=status(end),
            stdout="",
            stderr="",
            encoding="utf-8",
            truncated=record.exit is None,
            timing=Timing(),
            sandbox=handle.info,
            enforcement=dict(handle.enforcement),
            process=self.id,
            receipt=record.request,
        )
