"""What is written after a command has exited: asked of an agent as started, by both protocols."""

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.guest import wire

# It goes on once its parent is gone, not merely dead: the agent knows of the end by then.
LATE = "(while kill -0 $$ 2>/dev/null; do :; done; {}) & echo early"
# It has a tenth of a second for that. A machine that is busy may take it, but not each time.
SECONDS = 120.0
SIZE = {"rows": 24, "cols": 80}
FLOOD = "(while echo x; do :; done) & echo hi"

End = dict[str, Any]
Ask = Callable[..., End]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("late") / "agent.sock"
    command = [sys.executable, "-m", "agentd.guest.main", "--listen", f"unix:{path}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as agent:
        assert agent.stderr is not None
        assert b": listening on " in agent.stderr.readline()
        yield str(path)
        agent.terminate()
        assert agent.wait(120) == 0


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(120)
    client.connect(path)
    return client


def by_v1(path: str, *argv: str, **options: Any) -> End:
    with connect(path) as client, client.makefile("rb") as replies:
        client.sendall(json.dumps({"command": argv[0], "args": argv[1:]}).encode() + b"\n")
        reply = json.loads(replies.readline())
    cut = (reply["error"] or "").startswith("output truncated: ")
    assert cut or reply["error"] is None
    out, err = (base64.b64decode(reply[name]) for name in ("stdout", "stderr"))
    return {"code": reply["exit_code"], "truncated": cut, "stdout": out, "stderr": err}


def by_v2(path: str, *argv: str, **options: Any) -> End:
    decoder = wire.FrameDecoder(wire.FROM_AGENT)
    output = {wire.STDOUT: b"", wire.STDERR: b""}
    request = {"op": "exec", "argv": argv, **options}
    with connect(path) as client:
        client.sendall(wire.HELLO + wire.encode_json(wire.REQUEST, 1, request))
        line = b""
        while not line.endswith(b"\n"):
            line += client.recv(1)
        while data := client.recv(1 << 16):
            for kind, channel, payload in decoder.feed(data):
                if kind in output:
                    output[kind] += payload
                    client.sendall(wire.encode_credit(channel, len(payload)))
                elif kind == wire.EVENT:
                    event = json.loads(payload)
                    if event["event"] == "exited":
                        named = {"stdout": output[wire.STDOUT], "stderr": output[wire.STDERR]}
                        return event | named
    raise AssertionError("the agent hung up")


@pytest.fixture(params=[by_v1, by_v2], ids=["v1", "v2"])
def ask(request: pytest.FixtureRequest, path: str) -> Ask:
    def ask(*argv: str, **options: Any) -> End:
        found: End = request.param(path, *argv, **options)
        return found

    return ask


@pytest.mark.parametrize(
    ("write", "stream", "expected"),
    [
        ("echo late", "stdout", b"early\nlate\n"),
        ("sleep 0.03; echo late", "stdout", b"early\nlate\n"),
        ("echo late >&2", "stderr", b"late\n"),
        (
            "exec 2>&-; seq 10000",
            "stdout",
            b"early\n" + b"".join(b"%d\n" % n for n in range(1, 10001)),
        ),
    ],
)
def test_what_is_written_after_the_exit_arrives(
    ask: Ask, write: str, stream: str, expected: bytes
) -> None:
    deadline = time.monotonic() + SECONDS
    while (found := ask("sh", "-c", LATE.format(write)))[stream] != expected:
        assert (found["code"], found["truncated"]) == (0, False)
        assert time.monotonic() < deadline, found[stream][-100:]


def test_the_time_begins_when_the_agent_has_seen_the_exit(ask: Ask) -> None:
    """It stands still meanwhile, as on a machine that gives it no processor."""
    script = "kill -STOP $PPID; (sleep 0.5; echo late; kill -CONT $PPID) & echo early"
    found = ask("sh", "-c", script)
    assert (found["stdout"], found["truncated"]) == (b"early\nlate\n", False)


@pytest.mark.parametrize(
    "command",
    [
        ["bash", "-c", "exec > >(cat) 2>&1; echo hi"],
        ["setsid", "sh", "-c", "echo hi"],
        ["sh", "-c", "/bin/echo hi &"],
    ],
    ids=lambda command: command[0],
)
def test_common_ways_to_leave_a_writer_behind(ask: Ask, command: list[str]) -> None:
    # Nearly all of them were lost. On a busy machine some may be late.
    asked = came = 0
    while came < 15:
        came += ask(*command)["stdout"] == b"hi\n"
        asked += 1
        assert asked < 60, f"{came} of {asked} came"


def test_a_silent_holder_does_not_hold_up_the_end(ask: Ask, tmp_path: Path) -> None:
    found = ask("sh", "-c", f"sleep 1000 & echo $! >{tmp_path}/pid; echo hi")
    # It is left alone.
    os.kill(int((tmp_path / "pid").read_text()), 9)
    assert (found["code"], found["truncated"], found["stdout"]) == (0, False, b"hi\n")


def test_who_writes_for_ever_is_cut_and_that_is_told(ask: Ask) -> None:
    deadline = time.monotonic() + SECONDS
    # One that the machine gives no processor for a tenth of a second is a silent holder.
    while not (found := ask("sh", "-c", FLOOD))["truncated"]:
        assert (found["code"], b"hi\n" in found["stdout"]) == (0, True)
        assert time.monotonic() < deadline, "it never wrote in time"
    assert found["code"] == 0
    assert b"hi\n" in found["stdout"]


@pytest.mark.parametrize("script", ["setsid sh -c '{}' {}", "trap '' HUP; sh -c '{}' {}"])
def test_on_a_terminal_too(path: str, script: str) -> None:
    late = "while kill -0 $0 2>/dev/null; do :; done; echo late"
    command = script.format(late, "$$ &") + " echo early; sleep 0.05"
    asked = ("sh", "-c", command)
    deadline = time.monotonic() + SECONDS
    while (found := by_v2(path, *asked, pty=SIZE))["stdout"] != b"early\r\nlate\r\n":
        assert (found["code"], found["truncated"]) == (0, False)
        assert time.monotonic() < deadline, found["stdout"]


def test_who_writes_to_a_terminal_for_ever_is_cut_and_that_is_told(path: str) -> None:
    command = "setsid sh -c 'while echo x; do :; done' & echo hi; sleep 0.05"
    deadline = time.monotonic() + SECONDS
    while not (found := by_v2(path, "sh", "-c", command, pty=SIZE))["truncated"]:
        assert time.monotonic() < deadline, "it never wrote in time"
    assert found["code"] == 0


def test_late_output_counts_toward_the_limit(path: str) -> None:
    asked = ("sh", "-c", LATE.format("while echo x; do :; done"))
    deadline = time.monotonic() + SECONDS
    while (found := by_v2(path, *asked, limits={"output": 1000}))["cause"] == "exited":
        assert found["stdout"].startswith(b"early\n")
        assert time.monotonic() < deadline, "so much never came in time"
    assert (found["code"], found["cause"], found["truncated"]) == (0, "output_limit", True)
    assert len(found["stdout"]) == 1000


def test_a_time_limit_does_not_wait_for_what_is_left(path: str, tmp_path: Path) -> None:
    script = f"setsid sleep 1000 & echo $! >>{tmp_path}/pids; echo hi; sleep 1000"
    asked, deadline = ("sh", "-c", script), time.monotonic() + SECONDS
    # A busy machine may take all of that before it has said anything, but not each time.
    while not (found := by_v2(path, *asked, limits={"wall_ms": 500}))["stdout"]:
        assert found["cause"] == "timeout"
        assert time.monotonic() < deadline, "none of them began in time"
    for pid in (tmp_path / "pids").read_text().split():
        with contextlib.suppress(ProcessLookupError):  # it was ended before it left the group
            os.kill(int(pid), 9)
    assert (found["cause"], found["truncated"], found["stdout"]) == ("timeout", False, b"hi\n")
