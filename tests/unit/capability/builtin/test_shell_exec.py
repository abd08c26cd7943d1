import os
import time
from base64 import b64decode
from typing import Any

import pytest

from agentd.capability.builtin.shell_exec import MAX_OUTPUT
from agentd.model.errors import InvalidInput

NAME = "shell.exec.v1"


def test_its_output_comes_as_it_is_written_and_is_in_the_value_too(box: Any) -> None:
    seen: list[tuple[str, bytes]] = []

    def emit(kind: str, data: bytes) -> None:
        seen.append((kind, data))
        if b"first" in data:
            box.put("go", "")  # the command waits for what only its output can have caused

    script = "echo first; until [ -e go ]; do sleep 0.01; done; echo second; echo err >&2"
    outcome = box.outcome(NAME, emit, command="sh", args=["-c", script], timeout_ms=20_000)
    assert outcome.value["stdout"] == "first\nsecond\n"
    assert outcome.value["cause"]["code"] == "exited"
    streams = {kind: b"".join(d for k, d in seen if k == kind) for kind in ("stdout", "stderr")}
    assert streams == {"stdout": b"first\nsecond\n", "stderr": b"err\n"}
    assert outcome.end is not None and outcome.end.stdout == b"first\nsecond\n"


def test_no_shell_reads_the_arguments(box: Any) -> None:
    value = box.call(NAME, command="printf", args=["%s|", "$HOME", "a b", "; id", "*"])
    assert value["stdout"] == "$HOME|a b|; id|*|"


def test_bytes_go_in_and_come_out(box: Any) -> None:
    value = box.call(NAME, command="cat", stdin="AP8B", stdin_encoding="base64")
    assert value["encoding"] == "base64" and b64decode(value["stdout"]) == b"\0\xff\1"


def test_four_mib_through_its_stdin(box: Any) -> None:
    value = box.call(NAME, command="cat", stdin="x" * (4 << 20))
    assert value["stdout"] == "x" * (4 << 20) and not value["truncated"]


def test_where_it_runs_and_what_it_sees(box: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTD_TEST_SECRET", "hunter2")
    box.put("sub/x", "")
    script = "pwd; echo ${GIVEN:-none} ${AGENTD_TEST_SECRET:-none}"
    value = box.call(NAME, command="sh", args=["-c", script], cwd="sub", env={"GIVEN": "yes"})
    assert value["stdout"] == f"{box.inside.workspace}/sub\nyes none\n"


def test_a_signal(box: Any) -> None:
    value = box.call(NAME, command="sh", args=["-c", "kill -9 $$"])
    assert (value["exit_code"], value["signal"]) == (None, 9)
    assert value["cause"]["code"] == "signalled"


def test_a_command_that_is_not_there(box: Any) -> None:
    value = box.call(NAME, command="no-such-program")
    assert value["cause"]["code"] == "spawn_failed" and value["exit_code"] == 127


def test_one_that_takes_too_long_is_ended(box: Any) -> None:
    asked = {"command": "sh", "args": ["-c", "echo a; sleep 600"]}
    for milliseconds in (300, 1000, 5000, 25_000):  # a busy machine may need more until it is up
        value = box.call(NAME, **asked, timeout_ms=milliseconds)
        assert value["cause"]["code"] == "timeout"
        if value["stdout"]:
            break
    assert value["stdout"] == "a\n"


def test_the_sandbox_s_own_time_holds(make_box: Any) -> None:
    value = make_box(timeout="300ms").call(NAME, command="sleep", args=["600"], timeout_ms=600_000)
    assert value["cause"]["code"] == "timeout"


def test_output_without_an_end_is_an_end(box: Any) -> None:
    value = box.call(NAME, command="sh", args=["-c", "yes"])
    assert value["cause"]["code"] == "output_limit" and value["truncated"]
    # That of a command told to raise the sandbox's limit, which is none of a call's.
    assert value["cause"]["remediation"].startswith("write to a file in the workspace, and fs.read")
    assert len(value["stdout"]) == MAX_OUTPUT


def test_as_much_as_may_be_of_the_worst_kind_still_fits(box: Any) -> None:
    script = f"head -c {2 * MAX_OUTPUT} /dev/urandom"
    value = box.call(NAME, command="sh", args=["-c", f"{script} & {script} >&2; wait"])
    assert value["encoding"] == "base64"
    assert max(len(b64decode(value[name])) for name in ("stdout", "stderr")) == MAX_OUTPUT


@pytest.mark.parametrize(
    ("parameters", "what"),
    [
        ({"command": "a\0b"}, "command holds a NUL"),
        ({"command": "a", "args": ["\0"]}, "args holds a NUL"),
        ({"command": "a", "env": {"A": "\0"}}, "env holds a NUL"),
        ({"command": "a", "cwd": "\0"}, "the path holds a NUL"),
        ({"command": "a", "env": {"A=B": ""}}, "env"),
        ({"command": "a", "env": {"": ""}}, "env"),
        ({"command": "a", "stdin": "?", "stdin_encoding": "base64"}, "not base64"),
        ({"command": "a", "shell": True}, "parameter shell is unknown"),
        ({"command": ""}, "parameter command is shorter"),
    ],
)
@pytest.mark.parametrize("backend", ["host"], indirect=True)
def test_what_is_refused(box: Any, parameters: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        box.call(NAME, **parameters)
    assert what in str(caught.value)


@pytest.mark.parametrize("backend", ["host"], indirect=True)
def test_a_follower_that_fails_ends_the_command(box: Any) -> None:
    def emit(kind: str, data: bytes) -> None:
        raise ConnectionResetError("they went away")

    with pytest.raises(Exception, match="they went away"):
        box.outcome(NAME, emit, command="sh", args=["-c", "echo $$ > pid; echo x; sleep 600"])
    pid = int(box.get("pid"))
    deadline = time.monotonic() + 120
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline, "the command goes on"
        time.sleep(0.02)
