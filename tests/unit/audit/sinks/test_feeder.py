import threading
from collections.abc import Sequence
from pathlib import Path

from agentd.audit.log import AuditLog
from agentd.audit.read import records
from agentd.audit.sinks.feeder import Feeder
from agentd.audit.sinks.port import Rejected, Unsent
from agentd.model.audit import Event, Kind


class Sink:
    """Fails as often as it is told to, then takes."""

    def __init__(self, failures: int = 0, sent: int = 0, refuses: int = 0) -> None:
        self.lines: list[bytes] = []
        self.failures, self.sent, self.refuses = failures, sent, refuses
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()
        self.closed = False

    def send(self, lines: Sequence[bytes]) -> None:
        self.reached.set()
        self.gate.wait(120)
        if self.failures:
            self.failures -= 1
            self.lines += lines[: self.sent]
            raise Unsent("away", self.sent)
        self.lines += lines
        if self.refuses:
            raise Rejected("too large", self.refuses)

    def close(self) -> None:
        self.closed = True


def lines(count: int) -> list[bytes]:
    return [b"%d\n" % number for number in range(count)]


def test_records_arrive_in_their_order_and_once() -> None:
    sink, notes = Sink(failures=2, sent=1), list[Event]()
    feeder = Feeder("s", sink, notes.append)
    feeder.offer(lines(5))
    feeder.close(10)
    assert sink.lines == lines(5) and feeder.dropped == 0 and not notes and sink.closed


def test_what_the_buffer_has_no_room_for_is_counted_and_told() -> None:
    sink, notes = Sink(), list[Event]()
    sink.gate.clear()
    feeder = Feeder("s", sink, notes.append, max_records=3)
    feeder.offer(lines(10))  # returns, though the sink stands still
    assert sink.reached.wait(120)
    sink.gate.set()
    feeder.close(10)
    assert sink.lines == lines(3) and feeder.dropped == 7
    (note,) = notes
    assert note.kind is Kind.LOSS and note.fields["unsent"] == 7 and note.fields["sink"] == "s"


def test_bytes_are_bounded_too() -> None:
    sink, notes = Sink(), list[Event]()
    sink.gate.clear()
    feeder = Feeder("s", sink, notes.append, max_bytes=10)
    feeder.offer([b"x" * 8, b"x" * 8])
    assert feeder.dropped == 1
    sink.gate.set()
    feeder.close(10)


def test_what_the_other_side_refuses_is_counted() -> None:
    notes = list[Event]()
    feeder = Feeder("s", Sink(refuses=2), notes.append)
    feeder.offer(lines(5))
    feeder.close(10)
    assert feeder.dropped == 2 and notes[0].fields["unsent"] == 2


def test_a_sink_that_is_away_at_the_end_costs_what_it_has_not_taken() -> None:
    notes = list[Event]()
    feeder = Feeder("s", Sink(failures=10**9), notes.append)
    feeder.offer(lines(5))
    feeder.close(0.05)
    assert feeder.dropped == 5 and notes[0].fields == {
        "unsent": 5,
        "sink": "s",
        "reason": "away",
    }
    feeder.offer(lines(1))
    assert feeder.dropped == 6


def test_a_sink_that_breaks_loses_its_batch_and_goes_on() -> None:
    class Broken(Sink):
        def send(self, lines: Sequence[bytes]) -> None:
            if not self.lines:
                self.lines.append(b"")
                raise ValueError("a bug")
            super().send(lines)

    sink, notes = Broken(), list[Event]()
    told = threading.Event()
    feeder = Feeder("s", sink, lambda event: (notes.append(event), told.set())[1])
    feeder.offer([b"1\n"])
    assert told.wait(120)
    feeder.offer([b"2\n"])
    feeder.close(10)
    assert sink.lines == [b"", b"2\n"] and "a bug" in notes[0].fields["reason"]


def test_a_log_goes_on_while_its_sink_stands_still_and_records_what_it_lost(
    tmp_path: Path,
) -> None:
    good, bad = Sink(), Sink(failures=10**9)
    log = AuditLog(str(tmp_path), sinks={"good": good, "bad": bad})
    for _ in range(10):
        log.append(Event(kind=Kind.START))
    log._feeders[1].close(0)
    log.close()
    found = list(records(str(tmp_path)))
    kinds = [record.kind for record in found]
    assert kinds[:12] == ["opened", *["start"] * 10, "loss"] and set(kinds[12:]) <= {"loss"}
    assert found[11].fields["sink"] == "bad" and found[11].fields["unsent"] == 11
    raw = next(tmp_path.glob("audit-*.jsonl")).read_bytes().splitlines(keepends=True)
    assert good.lines[:11] == raw[:11] and log.counts.unsent >= 11


def test_what_waits_when_the_log_is_closed_is_sent_as_well(tmp_path: Path) -> None:
    sink = Sink()
    log = AuditLog(str(tmp_path), sinks={"sink": sink})
    for _ in range(100):
        log.submit(Event(kind=Kind.START))
    log.close()
    raw = next(tmp_path.glob("audit-*.jsonl")).read_bytes().splitlines(keepends=True)
    assert len(raw) == 101 and sink.lines == raw
    assert log.counts.unsent == 0
