import array
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading

import pytest

from agentd.client.cli import run
from agentd.client.cli.interrupts import Interrupted, Interrupts
from agentd.model.errors import AgentdError, InvalidInput, Refused


@pytest.fixture
def stdin():
    """Our descriptor 0 for the test: a pipe, whose other end this is."""
    saved = os.dup(0)
    read_end, write_end = os.pipe()
    os.dup2(read_end, 0)
    os.close(read_end)
    with os.fdopen(write_end, "wb", buffering=0) as pipe:
        yield pipe
    os.dup2(saved, 0)
    os.close(saved)


def test_output_and_exit_code_pass_through(backend, capfd):
    assert run.main(["--", "sh", "-c", "echo out; echo err >&2; exit 3"]) == 3
    assert capfd.readouterr() == ("out\n", "err\n")
    assert backend.walls[0].process.returncode is not None


@pytest.mark.parametrize(
    ("script", "options", "code", "words"),
    [
        ("kill -9 $$", [], 137, ""),
        ("sleep 60", ["--timeout", "100ms"], 124, "agentd run: timeout: ran longer than 0.1 s"),
        ("yes", ["--output", "1K"], 137, "agentd run: output_limit"),
    ],
)
def test_other_ends(backend, capfd, script, options, code, words):
    assert run.main([*options, "--", "sh", "-c", script]) == code
    assert capfd.readouterr().err.startswith(words)


def test_a_variable_that_is_a_secret_too_is_refused(backend, monkeypatch):
    """As everywhere: the program would have the secret itself."""
    monkeypatch.setenv("API_TOKEN", "sk-0123456789abcdefghijkl")
    words = ["--embedded", "--secret", "API_TOKEN@api.example.com", "-e", "API_TOKEN"]
    with pytest.raises(InvalidInput, match="API_TOKEN is a variable and a secret"):
        run.main([*words, "--", "printenv", "API_TOKEN"])


def test_a_program_that_is_not_there_is_127(backend, capfd):
    assert run.main(["--", "no-such-program"]) == 127
    assert "spawn_failed: no-such-program: No such file or directory" in capfd.readouterr().err


def test_json_is_one_object(backend, capfd):
    assert run.main(["--json", "-e", "A=b", "--", "sh", "-c", "echo $A; exit 3"]) == 3
    out, err = capfd.readouterr()
    value = json.loads(out)
    assert (value["stdout"], value["exit_code"], value["status"]) == ("b\n", 3, "failed")
    assert value["timing"]["setup_ms"] > 0
    assert "changes" not in value
    assert value["via"] == "embedded"
    assert err == ""


def test_a_socket_that_nobody_listens_on_is_no_daemon(backend, capfd, tmp_path):
    (tmp_path / "agentd").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "agentd" / "agentd.sock"))
    assert run.main(["-v", "--", "echo", "here"]) == 0
    table = "CONTROL  ASKED    HOLDS  HOW\nwall     default  no     a fake for tests\n"
    assert capfd.readouterr() == ("here\n", f"agentd run: via this process\n{table}")


def test_a_daemon_that_was_named_must_be_there(backend, tmp_path):
    with pytest.raises(AgentdError, match="no daemon answers") as caught:
        run.main(["--url", f"unix:{tmp_path}/none", "--", "true"])
    assert caught.value.code == "unreachable"
    assert backend.walls == []


@pytest.mark.parametrize(
    "words",
    [
        ["--embedded", "--url", "unix:/x", "--", "true"],
        ["--url", "unix:/x", "--snapshot", "/s", "--", "true"],
        ["--url", "nonsense", "--", "true"],
    ],
)
def test_where_it_cannot_run(backend, words):
    with pytest.raises(InvalidInput):
        run.main(words)


def test_a_refusal_is_an_object_too(backend, capfd, monkeypatch):
    def refuse(spec):
        raise Refused("not today", remediation="come back")

    monkeypatch.setattr(backend, "plan", refuse)
    with pytest.raises(Refused):
        run.main(["--json", "--backend", "linux", "--", "true"])
    value = json.loads(capfd.readouterr().out)
    assert value["cause"] == {
        "code": "refused",
        "message": "not today",
        "remediation": "come back",
        "infrastructure": False,
    }


@pytest.mark.parametrize("options", [["-i"], ["-i", "--json"]])
def test_stdin_passes_with_i(backend, capfd, stdin, options):
    feeder = threading.Thread(target=lambda: (stdin.write(b"x" * 500_000), stdin.close()))
    feeder.start()
    assert run.main([*options, "--", "sh", "-c", "wc -c"]) == 0
    feeder.join()
    assert "500000" in capfd.readouterr().out


def test_stdin_stays_ours_without_i(backend, capfd, stdin):
    stdin.write(b"ours")
    assert run.main(["--", "wc", "-c"]) == 0
    assert capfd.readouterr().out.strip() == "0"
    assert os.read(0, 10) == b"ours"


def test_a_command_may_end_before_its_stdin(backend, stdin):
    assert run.main(["-i", "--", "true"]) == 0


@pytest.mark.parametrize(
    ("options", "applied", "words"),
    [([], 0, "not written to the host; --apply"), (["--apply"], 1, "written to the host")],
)
def test_changes_of_a_cow_workspace(backend, capfd, tmp_path, options, applied, words):
    assert run.main(["-w", f"{tmp_path}:cow", *options, "--", "true"]) == 0
    err = capfd.readouterr().err
    assert words in err and "  A new\n  D gone\n" in err
    assert backend.walls[0].applied == applied


def test_a_failed_commands_changes_are_not_applied(backend, capfd, tmp_path):
    assert run.main(["--json", "-w", f"{tmp_path}:cow", "--apply", "--", "false"]) == 1
    assert json.loads(capfd.readouterr().out)["changes"] == ["A new", "D gone"]
    assert backend.walls[0].applied == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_and_us(backend, number, code, tmp_path):
    # Whoever started us in the background may have had us ignore it, and that is respected.
    before = signal.signal(number, signal.SIG_DFL)
    flag = tmp_path / "started"

    def send():
        while not flag.exists():
            pass
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert run.main(["--", "sh", "-c", f"touch {flag}; exec sleep 60"]) == code
    sender.join()
    assert backend.walls[0].process.returncode is not None
    assert signal.signal(number, before) is signal.SIG_DFL


def test_a_signal_waits_until_it_may_come():
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.pending == signal.SIGTERM
        with pytest.raises(Interrupted) as caught, interrupts.allowed():
            pytest.fail("it was let in")
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.number == signal.SIGTERM


def test_a_terminal_is_needed_for_t(backend, stdin):
    with pytest.raises(InvalidInput, match="--tty needs a terminal"):
        run.main(["-t", "--", "true"])
    assert backend.walls == []


def test_a_terminal_passes_through_and_is_restored(backend):
    """In a child that has a terminal: keys, size and exit code, then the modes as before."""
    import fcntl
    import pty
    import struct
    import termios
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid, fd = pty.fork()
    if pid == 0:
        code = 99
        try:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 97, 0, 0))
            before = termios.tcgetattr(0)
            code = run.main(["-t", "--", "sh", "-c", "stty size; read x; echo got $x; exit 7"])
            code = code if termios.tcgetattr(0) == before else 98
        finally:
            os._exit(code)
    out = b""
    while b"31 97" not in out:
        out += os.read(fd, 4096)
    os.write(fd, b"key\r")
    while b"got key" not in out:
        out += os.read(fd, 4096)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    os.close(fd)


def test_what_is_typed_ahead_is_the_commands() -> None:
    ours, theirs = os.openpty()
    os.write(ours, b"early\n")
    script = "echo be''gun; read x; echo got $x"
    argv = [sys.executable, "-m", "agentd", "run", "--embedded", "-t", "--", "sh", "-c", script]
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        out = b""
        while b"begun" not in out:
            out += os.read(ours, 4096)
        os.write(ours, b"late\r")  # once it has the terminal
        while b"got " not in out or not out.endswith(b"\n"):
            out += os.read(ours, 4096)
    assert out.partition(b"got ")[2].startswith(b"early\r\n"), out
    assert process.returncode == 0
    os.close(ours)
    os.close(theirs)


def test_keys_that_the_command_did_not_read_are_nobody_elses() -> None:
    """It has the terminal answer more than it reads: the shell would take the rest for its own."""
    ours, theirs = os.openpty()
    argv = [
        sys.executable,
        "-m",
        "agentd",
        "run",
        "-t",
        "--",
        "sh",
        "-c",
        "echo be''gun; sleep 99",
    ]
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        out = b""
        while b"begun" not in out:
            out += os.read(ours, 4096)
        while select.select([], [ours], [], 2)[1]:  # until nobody takes them any more
            os.write(ours, b"forged\r")
            if select.select([ours], [], [], 0)[0]:
                os.read(ours, 1 << 16)
        assert array.array("i", fcntl.ioctl(theirs, termios.FIONREAD, bytes(4)))[0] > 0
        process.terminate()
        while process.poll() is None:
            if select.select([ours], [], [], 0.1)[0]:
                os.read(ours, 1 << 16)
    assert array.array("i", fcntl.ioctl(theirs, termios.FIONREAD, bytes(4)))[0] == 0
    os.close(ours)
    os.close(theirs)
