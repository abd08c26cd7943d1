"""Output as it comes, in whole, and in order; terminals."""

import hashlib
import os
from collections.abc import Callable

import pytest

from agentd import CauseCode, InvalidInput, Process, Sandbox

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


def test_the_standard_streams_can_be_opened_by_their_names(sandbox: Sandbox) -> None:
    script = (
        "cat /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr; echo one >> /dev/fd/1;"
        "echo both | tee /dev/stderr"
    )
    result = sandbox.run(script, stdin="in\n")
    assert result.text == "in\nout\none\nboth\n"
    assert result.stderr == b"err\nboth\n"


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
    sandbox.run("mkfifo held", check=True)
    # Who reads a fifo sees its end when the last writer has ended.
    with sandbox.start("cat held", timeout=120) as watcher:
        with sandbox.start("exec 3>held; exec yes") as process:
            for chunk in process:
                assert chunk.data.startswith(b"y\n")
                break
        assert watcher.wait().exit_code == 0


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


def test_what_a_command_will_not_read_holds_up_nobody(sandbox: Sandbox) -> None:
    # It gives up by itself, for who writes and is held up until its end.
    waits = "n=0; until [ -e go ] || [ $n = 200 ]; do sleep 0.1; n=$((n + 1)); done; [ -e go ]"
    with sandbox.start(f"exec 0<&-; echo closed; {waits}", stdin=True) as process:
        _until(process, b"closed\n")
        for _ in range(4):
            process.write(b"x" * 1_000_000)
        sandbox.run(": > go", check=True)
        assert process.wait().exit_code == 0


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


@pytest.fixture
def terminal(sandbox: Sandbox) -> Callable[[str], Process]:
    """Begins a script in a terminal; skips where the wall gives out none, and says so."""
    with sandbox.start(["true"], pty=(30, 100)) as process:
        cause = process.wait().cause
    if cause.code is CauseCode.SPAWN_FAILED:
        pytest.skip(f"{sandbox.info.backend} has no terminals: {cause.message}")
    return lambda script: sandbox.start(script, pty=(30, 100))


def test_a_terminal_has_the_size_asked_for_and_can_be_resized(
    terminal: Callable[[str], Process],
) -> None:
    with terminal("test -t 0 -a -t 1 -a -t 2 && stty size; read x; stty size") as process:
        assert b"30 100" in _until(process, b"30 100")
        process.resize(41, 121)
        process.write(b"\n")
        _until(process, b"41 121")
        assert process.wait().exit_code == 0


def test_a_terminal_turns_keys_into_signals(terminal: Callable[[str], Process]) -> None:
    with terminal("trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.01; done") as (
        process
    ):
        _until(process, b"ready")
        process.write(b"\x03")
        _until(process, b"caught")
        assert process.wait().exit_code == 5


def test_closing_stdin_ends_a_terminals_input(terminal: Callable[[str], Process]) -> None:
    with terminal("echo ready; cat; echo over") as process:
        _until(process, b"ready")
        process.close_stdin()
        _until(process, b"over")
        assert process.wait().cause.code is CauseCode.EXITED


def test_a_terminals_text_is_not_cut_either(
    sandbox: Sandbox, terminal: Callable[[str], Process]
) -> None:
    script = r"printf 'a\342'; until [ -e go ]; do sleep 0.02; done; printf '\202\254\303'"
    read, text = b"", ""
    with terminal(script) as process:
        for chunk in process:
            read, text = read + chunk.data, text + chunk.text
            if read == b"a\xe2":
                sandbox.run(": > go", check=True)
    assert (read, text) == (b"a\xe2\x82\xac\xc3", "a\N{EURO SIGN}\ufffd")
