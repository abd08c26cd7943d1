import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from agentd.audit.log import AuditLog
from agentd.audit.sinks.lines import StdoutSink
from agentd.model.audit import Event, Kind

BEFORE = 1 << 20  # bytes: the log itself stays far below
ROOM = BEFORE + 1000


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def test_a_line_that_a_full_disk_broke_off_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Whoever reads standard output has each record whole, and once."""
    out = tmp_path / "out"
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.truncate(fd, BEFORE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    had = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    log = AuditLog(str(tmp_path / "audit"), sinks={"stdout": StdoutSink(fd)})
    try:
        for _ in range(40):
            log.append(Event(kind=Kind.START, fields={"pad": "x" * 100}))
        until(lambda: out.stat().st_size == ROOM)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        (file,) = (tmp_path / "audit").glob("audit-*.jsonl")
        until(lambda: out.stat().st_size >= BEFORE + file.stat().st_size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, had)
        log.close()
        os.close(fd)
    assert out.read_bytes()[BEFORE:] == file.read_bytes()
