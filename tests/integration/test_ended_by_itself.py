"""A sandbox that ends by itself is told with what is known of why, in the log and the audit log."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, running, until

from agentd import Sandbox
from agentd.model.errors import InvalidInput


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def test_the_log_says_what_is_known_of_it(daemon: Daemon) -> None:
    box = daemon.sandbox()
    seconds = _moment()
    started = daemon.ask(
        "POST", f"/v1/sandboxes/{box}/exec", {"cmd": f"sleep {seconds}", "wait": False}
    )
    assert started.status == 201, started.body
    os.kill(_first_above(seconds), signal.SIGKILL)
    ended = daemon.until_recorded(kind="sandbox_ended", sandbox=box)
    assert ended.fields["reason"] == "backend_lost"
    assert "its first process ended" in str(ended.fields["why"])
    until(lambda: f"sandbox={box} reason=backend_lost why=".encode() in daemon.log)
    assert b"its first process ended" in daemon.log


def _moment() -> str:
    """Seconds that nobody else sleeps: whoever does is found by them on the machine."""
    return f"614.{int.from_bytes(os.urandom(4)):010d}"


def _first_above(argument: str) -> int:
    """PID 1 of the sandbox in which ``sleep ARGUMENT`` runs: the outermost in its namespace."""
    until(lambda: _sleeping(argument))  # a shell begins it, and it has no words for a moment
    (pid,) = _sleeping(argument)
    while True:
        above = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if os.readlink(f"/proc/{above}/ns/pid") != os.readlink(f"/proc/{pid}/ns/pid"):
            return pid
        pid = above


def _sleeping(argument: str) -> list[int]:
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _argv(entry) == ["sleep", argument]
    ]


def _argv(entry: Path) -> list[str]:
    try:
        return os.fsdecode(entry.joinpath("cmdline").read_bytes()).split("\0")[:-1]
    except OSError:
        return []


def test_a_source_is_judged_where_it_really_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "to-file").symlink_to("file")
    for name, said in (
        ("loop", "cannot be reached: Too many levels of symbolic links"),
        ("gone", "does not exist"),
        ("file/in", "cannot be reached: Not a directory"),
        ("to-file", "is not a directory"),
        ("gone:xx", "does not exist"),
        (".:xx", "unknown mode 'xx'"),
    ):
        with pytest.raises(InvalidInput, match=said):
            Sandbox.create(workspace=f"{tmp_path}/{name}")
