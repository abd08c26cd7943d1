import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.audit.log import AuditLog
from agentd.audit.sinks.lines import StdoutSink
from agentd.audit.sinks.port import Unsent
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


def test_the_last_line_of_a_batch_goes_on_though_nothing_comes_behind_it(tmp_path: Path) -> None:
    out, line = tmp_path / "out", b"x" * 99 + b"\n"
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.truncate(fd, BEFORE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    had = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sink = StdoutSink(fd)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (BEFORE + 150, hard))
        with pytest.raises(Unsent) as caught:
            sink.send([line, line])
        assert caught.value.sent == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sink.send([line])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, had)
        os.close(fd)
    assert out.read_bytes()[BEFORE:] == line * 2
