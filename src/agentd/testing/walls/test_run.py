"""A command behind any wall: how it starts, what it is given, how it ends."""

import os
import signal
from collections.abc import Callable

import pytest

from agentd import CauseCode, CommandFailed, ExecLimits, Sandbox

pytestmark = pytest.mark.shares_machine


@pytest.mark.parametrize("code", [0, 1, 3, 127, 255])
def test_an_exit_code_comes_back(sandbox: Sandbox, code: int) -> None:
    result = sandbox.run(["sh", "-c", f"exit {code}"])
    assert (result.exit_code, result.signal) == (code, None)
    assert result.cause.code is CauseCode.EXITED
    assert result.status == ("ok" if code == 0 else "failed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGABRT])
def test_a_signal_comes_back(sandbox: Sandbox, number: int) -> None:
    result = sandbox.run(f"kill -{int(number)} $$")
    assert (result.exit_code, result.signal) == (None, number)
    assert result.cause.code is CauseCode.SIGNALLED


def test_streams_are_kept_apart_byte_by_byte(sandbox: Sandbox) -> None:
    result = sandbox.run(r"printf 'out\000\377\376'; printf 'err\200' >&2")
    assert result.stdout == b"out\0\xff\xfe"
    assert result.stderr == b"err\x80"
    assert result.text == "out\0\ufffd\ufffd"
    assert not result.truncated


def test_a_list_is_run_without_a_shell(sandbox: Sandbox) -> None:
    arguments = ["$HOME", "a b", "*", "", "'\"", "\u00e9"]
    result = sandbox.run(["printf", r"%s\n", *arguments])
    assert result.stdout.decode().split("\n")[:-1] == arguments


def test_a_string_is_run_by_the_shell(sandbox: Sandbox) -> None:
    assert sandbox.run("echo a | tr a b; echo $((6 * 7))").text == "b\n42\n"


def test_stdin_arrives_and_ends(sandbox: Sandbox) -> None:
    assert sandbox.run(["cat"], stdin=b"\0line\n\xff").stdout == b"\0line\n\xff"


def test_without_stdin_there_is_an_end_of_file(sandbox: Sandbox) -> None:
    result = sandbox.run(["cat"])
    assert (result.exit_code, result.stdout) == (0, b"")


def test_a_command_that_reads_no_stdin_still_ends(sandbox: Sandbox) -> None:
    assert sandbox.run(["true"], stdin=b"x" * 2_000_000).exit_code == 0


def test_nothing_of_the_hosts_environment_is_inside(sandbox: Sandbox, canary: str) -> None:
    assert os.environ[canary] == "leaked"
    names = {line.partition("=")[0] for line in sandbox.run(["env"]).text.splitlines()}
    assert names <= {"HOME", "LANG", "LOGNAME", "PATH", "PWD", "TMPDIR", "USER", "LC_CTYPE"}
    assert "PATH" in names


def test_variables_are_those_asked_for(make: Callable[..., Sandbox]) -> None:
    sandbox = make(env={"BOX": "box", "BOTH": "box"})
    result = sandbox.run('echo "$BOX $BOTH $OWN"', env={"BOTH": "run", "OWN": "a=b\n"})
    assert result.text == "box run a=b\n\n"
    assert sandbox.run('echo "$BOTH$OWN"').text == "box\n"


def test_the_working_directory_is_the_workspace(sandbox: Sandbox, workspace: str) -> None:
    assert sandbox.run("mkdir sub && echo x > sub/here").exit_code == 0
    assert sandbox.run(["ls"], cwd=f"{workspace}/sub").text == "here\n"
    assert sandbox.run(["ls"], cwd="sub").text == "here\n"


def test_a_missing_working_directory_never_runs(sandbox: Sandbox) -> None:
    result = sandbox.run(["true"], cwd="absent")
    assert (result.status, result.exit_code) == ("error", 127)
    assert result.cause.code is CauseCode.SPAWN_FAILED
    assert "absent" in result.cause.message
    assert "cwd" in result.cause.message


def test_a_missing_program_is_127(sandbox: Sandbox) -> None:
    for argv in (["no-such-program"], ["/no/such/program"]):
        result = sandbox.run(argv)
        assert (result.status, result.exit_code, result.signal) == ("error", 127, None)
        assert result.cause.code is CauseCode.SPAWN_FAILED
        assert argv[0] in result.cause.message
        assert result.cause.remediation


@pytest.mark.parametrize(
    ("made", "words"),
    [
        # A copy of a program: what it is written over with stays executable.
        (
            "cp /bin/true tool; printf '#!/gone/python -I\\n' > tool",
            "its interpreter /gone/python does not exist",
        ),
        (
            "cp /bin/true tool; ln -s /gone/python link; printf '#!%s/link\\n' $PWD > tool",
            "is a link to /gone/python, which does not exist",
        ),
        ("ln -s /gone/tool tool", "it is a link to /gone/tool, which does not exist"),
        ("ln -s tool tool", "it is a link to itself"),
        ("cp /bin/true tool; printf '#!/bin/sh\\r\\n' > tool", "carriage return"),
        ("mkdir tool", "it is a directory"),
        ("printf '#!/bin/sh\\n' > tool", "it is not executable"),
    ],
)
def test_what_a_program_lacks_is_named(sandbox: Sandbox, made: str, words: str) -> None:
    sandbox.run(made, check=True)
    result = sandbox.run(["./tool"])
    assert result.cause.code is CauseCode.SPAWN_FAILED
    assert words in result.cause.message
    # In another folder, and with a bound, by which it is started in another way.
    sandbox.run("mkdir sub", check=True)
    bounded = sandbox.run(["../tool"], cwd="sub", limits=ExecLimits(open_files=64))
    assert words in bounded.cause.message


def test_a_file_that_is_no_program_is_126(sandbox: Sandbox, workspace: str) -> None:
    sandbox.files.write(f"{workspace}/data", b"\x7fnothing")
    result = sandbox.run([f"{workspace}/data"])
    assert (result.status, result.exit_code) == ("error", 126)
    assert result.cause.code is CauseCode.SPAWN_FAILED


def test_an_argument_that_is_too_long_is_told_with_what_it_takes(sandbox: Sandbox) -> None:
    for argv, env in ((["echo", "x" * (200 << 10)], {}), (["echo"], {"LONG": "x" * (200 << 10)})):
        result = sandbox.run(argv, env=env)
        if result.status == "ok":
            pytest.skip("its kernel takes arguments of any length")
        assert (result.exit_code, result.cause.code) == (126, CauseCode.SPAWN_FAILED)
        assert "stdin or a file" in result.cause.remediation


def test_check_raises_with_the_result(sandbox: Sandbox) -> None:
    with pytest.raises(CommandFailed) as caught:
        sandbox.run("echo why >&2; exit 4", check=True)
    assert caught.value.result.exit_code == 4
    assert caught.value.result.stderr == b"why\n"
    assert sandbox.run(["true"], check=True).exit_code == 0


def test_state_stays_from_one_command_to_the_next(sandbox: Sandbox) -> None:
    sandbox.run("echo kept > file")
    assert sandbox.run(["cat", "file"]).text == "kept\n"


def test_the_process_group_is_the_commands_own(sandbox: Sandbox) -> None:
    # What a command signals by its group must reach neither the agent nor another command.
    result = sandbox.run("kill -TERM 0")
    assert result.signal == signal.SIGTERM
    assert sandbox.ping() is not None
    assert sandbox.run(["true"]).exit_code == 0
