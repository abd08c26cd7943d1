import threading
from collections.abc import Sequence
from pathlib import Path

from agentd.audit.log import AuditLog
from agentd.audit.read import records
from agentd.audit.sinks.feeder import MAX_RECORDS
from agentd.model.audit import Event, Kind


class Stuck:
    def __init__(self) -> None:
        self.gate = threading.Event()

    def send(self, lines: Sequence[bytes]) -> None:
        self.gate.wait()


def test_what_a_sink_has_lost_that_takes_nothing_is_told_while_it_stands_still(
    tmp_path: Path,
) -> None:
    sink = Stuck()
    log = AuditLog(str(tmp_path), sinks={"stuck": sink})
    try:
        for _ in range(MAX_RECORDS + 10):
            log.append(Event(kind=Kind.START), synced=False)
        log.look()
        log.append(Event(kind=Kind.END))
        (loss,) = (record for record in records(str(tmp_path)) if record.kind == "loss")
        assert loss.fields["sink"] == "stuck" and loss.fields["unsent"] >= 10
        assert loss.fields["reason"] == "it takes too few, or none"
    finally:
        sink.gate.set()
        log.close()
