"""Between the log and a sink: a bounded buffer and a thread, so that no sink holds up the log."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from agentd.audit.sinks.port import AuditSink, Rejected, Unsent
from agentd.model.audit import Event, Kind

MAX_RECORDS = 16_384
MAX_BYTES = 16 << 20
MAX_BATCH = 256
FIRST_PAUSE = 0.1  # seconds; doubled with each failure
LAST_PAUSE = 30.0
NOTE_SECONDS = 60.0  # between records of what was dropped, while it goes on
_STANDS_STILL = "it takes too few, or none"


class Feeder:
    """Records are dropped where the buffer is full; ``note`` gets an event with their number."""

    def __init__(
        self,
        name: str,
        sink: AuditSink,
        note: Callable[[Event], None],
        *,
        max_records: int = MAX_RECORDS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.name = name
        self.dropped = 0  # in all
        self._sink = sink
        self._note = note
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._buffer: deque[bytes] = deque()
        self._bytes = 0
        self._noted = 0  # of ``dropped``
        self._note_at = 0.0
        self._reason = ""
        self._guard = threading.Condition()
        self._deadline: float | None = None  # set when it is to end
        self._thread = threading.Thread(target=self._run, name=f"agentd-audit-{name}", daemon=True)
        self._thread.start()

    def offer(self, lines: Sequence[bytes]) -> None:
        """Never waits for the sink."""
        with self._guard:
            for line in lines:
                room = len(self._buffer) < self._max_records
                if (
                    self._deadline is not None
                    or not room
                    or self._bytes + len(line) > self._max_bytes
                ):
                    self.dropped += 1
                    continue
                self._buffer.append(line)
                self._bytes += len(line)
            self._guard.notify()

    def look(self) -> None:
        """Tell of what was dropped by a sink that takes nothing at all, and so cannot."""
        if self.dropped > self._noted:
            self._tell(always=False)

    def close(self, seconds: float) -> None:
        """Drop and count what is not sent by then."""
        with self._guard:
            self._deadline = time.monotonic() + seconds
            self._guard.notify()
        # A sink that is stuck in the kernel keeps its thread; that is a daemon thread.
        self._thread.join(seconds + 1)
        with self._guard:
            self.dropped += len(self._buffer)
            self._buffer.clear()
            self._bytes = 0
            self._reason = self._reason or "closed before it was sent"
        self._tell(always=True)

    def _run(self) -> None:
        try:
            self._feed()
        finally:
            close = getattr(self._sink, "close", None)
            if close is not None:
                close()

    def _feed(self) -> None:
        pause = FIRST_PAUSE
        while batch := self._next():
            refused, sent = 0, len(batch)
            try:
                self._sink.send(batch)
            except Rejected as error:
                refused, self._reason = error.count, str(error)
            except Unsent as error:
                sent, self._reason = error.sent, str(error)
            except OSError as error:
                sent, self._reason = 0, error.strerror or str(error)
            except Exception as error:  # a sink of somebody's: it ends its batch, not the thread
                refused, self._reason = len(batch), repr(error)
            self._take(sent, refused)
            # A record of what was refused is for the sink, too, and may be refused as well.
            works = sent == len(batch) and not refused
            self._tell(always=works)
            if works:
                self._reason = ""
            if sent == len(batch):
                pause = FIRST_PAUSE
                continue
            if not self._sleep(pause):
                return
            pause = min(2 * pause, LAST_PAUSE)

    def _next(self) -> list[bytes]:
        """Blocks until there is something; empty at the end."""
        with self._guard:
            while not self._buffer:
                if self._deadline is not None:
                    return []
                self._guard.wait()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return []
            return [self._buffer[i] for i in range(min(MAX_BATCH, len(self._buffer)))]

    def _take(self, sent: int, refused: int) -> None:
        with self._guard:
            for _ in range(min(sent, len(self._buffer))):
                self._bytes -= len(self._buffer.popleft())
            self.dropped += refused

    def _tell(self, *, always: bool) -> None:
        """Have the log record what was dropped: now that it works again, or every minute."""
        now = time.monotonic()
        with self._guard:
            count = self.dropped - self._noted
            if not count or (not always and now < self._note_at):
                return
            self._noted += count
            self._note_at = now + NOTE_SECONDS
        about = {"unsent": count, "sink": self.name, "reason": self._reason or _STANDS_STILL}
        self._note(Event(kind=Kind.LOSS, fields=about))

    def _sleep(self, seconds: float) -> bool:
        """Sleep; False where it is to end and the time for that is over."""
        until = time.monotonic() + seconds
        with self._guard:
            while (now := time.monotonic()) < until:
                if self._deadline is not None:
                    if now >= self._deadline:
                        return False
                    until = min(until, self._deadline)
                self._guard.wait(until - now)
        return True
