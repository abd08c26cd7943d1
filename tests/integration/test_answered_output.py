"""What a daemon keeps of a command that has ended and was answered."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, running

_COMMANDS, _BYTES = 12, 15_000_000


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def resident(daemon: Daemon) -> int:
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) << 10


def test_output_that_was_answered_is_in_the_journal_alone(daemon: Daemon) -> None:
    box = daemon.sandbox()
    path = f"/v1/sandboxes/{box}"
    before = resident(daemon)
    for _ in range(_COMMANDS):
        ended = daemon.ask(
            "POST", f"{path}/exec", {"cmd": f"head -c {_BYTES} /dev/zero | tr '\\0' a"}
        )
        assert ended.json["stdout"] == "a" * _BYTES
    process = ended.json["process"]
    # Of a few at a time; each was kept twice, as long as its sandbox lived.
    assert resident(daemon) - before < _COMMANDS * _BYTES
    shown = daemon.ask("GET", f"{path}/processes/{process}").json
    assert shown["output"] == {"stdout": _BYTES} and shown["result"]["exit_code"] == 0
    assert len(daemon.ask("GET", f"{path}/processes/{process}/output?stream=stdout").body) == _BYTES
