"""Output as it comes, in whole, and in order; terminals."""

import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from agentd.client.sandbox import Process, Sandbox
from agentd.model.cause import CauseCode
from agentd.model.errors import InvalidInput

pytestmark = pytest.mark.shares_machine

MANY = 10_000_000


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _until(process: Process, wanted: bytes) -> bytes:
    """Its output up to ``wanted``, which must come before its end."""
    seen = b""
    for chunk in process:
        seen += chunk.data
        if wanted in seen:
            return seen
    raise AssertionError(f"it ended with {process.result.cause} after {seen!r}")


def test_ten_megabytes_of_output_are_whole(sandbox: Sandbox) -> None:
    # Numbered lines: a piece lost, doubled or out of place cannot go unseen.
    result = sandbox.run(f"yes 0123456789abcdef | cat -n | head -c {MANY}")
    lines = b"".join(b"%6d\t0123456789abcdef\n" % n for n in range(1, MANY // 24 + 2))
    assert len(result.stdout) == MANY
    assert _digest(result.stdout) == _digest(lines[:MANY])


def test_ten_megabytes_go_through_stdin_and_back(sandbox: Sandbox) -> None:
    data = os.urandom(MANY)
    result = sandbox.run(["cat"], stdin=data)
    assert _digest(result.stdout) == _digest(data)


def test_both_streams_at_once_do_not_block_each_other(sandbox: Sandbox) -> None:
    size = 2_000_000
    result = sandbox.run(f"head -c {size} /dev/zero >&2 & head -c {size} /dev/zero; wait")
    assert (len(result.stdout), len(result.stderr)) == (size, size)


def test_a_stream_is_in_order(sandbox: Sandbox) -> None:
    with sandbox.stream(["seq", "50000"]) as process:
        output = b"".join(chunk.data for chunk in process if chunk.stream == "stdout")
    assert output.split() == [b"%d" % n for n in range(1, 50001)]
    assert process.result.exit_code == 0


def test_output_comes_while_the_command_runs(sandbox: Sandbox) -> None:
    # It waits for an answer to what it has said: without liveness neither would go on.
    script = "echo ready; read answer; echo got $answer; echo oops >&2"
    with sandbox.start(script, stdin=True) as process:
        assert _until(process, b"\n") == b"ready\n"
        process.write("yes\n")
        rest = [(chunk.stream, chunk.data) for chunk in process]
    assert b"".join(data for name, data in rest if name == "stdout") == b"got yes\n"
    assert b"".join(data for name, data in rest if name == "stderr") == b"oops\n"


def test_text_is_never_cut_inside_a_character(sandbox: Sandbox) -> None:
    # Half of a character on each stream; the rests only when both halves have been read.
    halves = r"printf 'a\342'; printf '\303' >&2; read x"
    rests = r"printf '\202\254\377z\360\237'; printf '\251' >&2"
    seen, read = {"stdout": "", "stderr": ""}, b""
    with sandbox.start(f"{halves}; {rests}", stdin=True) as process:
        for chunk in process:
            assert chunk.text == str(chunk)
            seen[chunk.stream] += chunk.text
            read += chunk.data
            if sorted(read) == sorted(b"a\xe2\xc3"):
                process.write("\n")
    assert seen == {"stdout": "a\N{EURO SIGN}\ufffdz\ufffd", "stderr": "\xe9"}


def test_a_reader_that_stops_early_ends_the_command(sandbox: Sandbox) -> None:
    with sandbox.start(["yes"]) as process:
        for chunk in process:
            assert chunk.data.startswith(b"y\n")
            break
    deadline = time.monotonic() + 120
    while "yes" in _commands(sandbox):  # its connection has closed; the agent is told by poll
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _commands(sandbox: Sandbox) -> list[str]:
    held: Any = sandbox._held
    if held.lasting:
        return [found.argv[0] for found in held.processes() if found.state == "running"]
    return [process.argv[0] for process in held.handle.guest.processes()]


def test_a_slow_reader_loses_nothing(sandbox: Sandbox) -> None:
    size = 3_000_000
    with sandbox.start(f"head -c {size} /dev/zero; echo done", stdin=True) as process:
        total = 0
        for chunk in process:
            total += len(chunk.data)
    assert total == size + len("done\n")


def test_the_result_waits_for_the_output(sandbox: Sandbox) -> None:
    with sandbox.start(["cat"], stdin=True) as process:
        with pytest.raises(InvalidInput, match="not ended"):
            _ = process.result
        process.close_stdin()
        assert process.wait().exit_code == 0
        assert process.result.exit_code == 0


def test_a_grandchild_that_holds_stdout_does_not_hold_the_answer(sandbox: Sandbox) -> None:
    result = sandbox.run("sleep 1000 & echo said")
    assert (result.exit_code, result.stdout) == (0, b"said\n")


def test_a_signal_reaches_the_command_and_its_trap(sandbox: Sandbox) -> None:
    script = "trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.01; done"
    with sandbox.start(script) as process:
        _until(process, b"ready\n")
        assert process.pid is not None
        process.signal(10)
        _until(process, b"caught\n")
        assert process.wait().exit_code == 9


# --- terminals ---


with_terminals = pytest.mark.parametrize(
    "kind", ["fake", "host", "linux", "linux over HTTP"], indirect=True
)


@pytest.fixture
def terminal(sandbox: Sandbox) -> Callable[[str], Process]:
    return lambda script: sandbox.start(script, pty=(30, 100))


@with_terminals
def test_a_terminal_has_the_size_asked_for_and_can_be_resized(
    terminal: Callable[[str], Process],
) -> None:
    with terminal("test -t 0 -a -t 1 -a -t 2 && stty size; read x; stty size") as process:
        assert b"30 100" in _until(process, b"30 100")
        process.resize(41, 121)
        process.write(b"\n")
        _until(process, b"41 121")
        assert process.wait().exit_code == 0


@with_terminals
def test_a_terminal_turns_keys_into_signals(terminal: Callable[[str], Process]) -> None:
    with terminal("trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.01; done") as (
        process
    ):
        _until(process, b"ready")
        process.write(b"\x03")
        _until(process, b"caught")
        assert process.wait().exit_code == 5


@with_terminals
def test_closing_stdin_ends_a_terminals_input(terminal: Callable[[str], Process]) -> None:
    with terminal("echo ready; cat; echo over") as process:
        _until(process, b"ready")
        process.close_stdin()
        _until(process, b"over")
        assert process.wait().cause.code is CauseCode.EXITED


@with_terminals
def test_a_terminals_text_is_not_cut_either(sandbox: Sandbox) -> None:
    script = r"printf 'a\342'; until [ -e go ]; do sleep 0.02; done; printf '\202\254\303'"
    read, text = b"", ""
    with sandbox.start(script, pty=(24, 80)) as process:
        for chunk in process:
            read, text = read + chunk.data, text + chunk.text
            if read == b"a\xe2":
                sandbox.run(": > go", check=True)
    assert (read, text) == (b"a\xe2\x82\xac\xc3", "a\N{EURO SIGN}\ufffd")


@pytest.mark.parametrize("kind", ["landlock"], indirect=True)
def test_a_wall_without_terminals_says_so(sandbox: Sandbox) -> None:
    with sandbox.start(["true"], pty=(24, 80)) as process:
        result = process.wait()
    assert result.cause.code is CauseCode.SPAWN_FAILED
    assert "pty" in result.cause.message
    assert os.strerror(13) in result.cause.message
