"""agentd-guest as a user starts it: every place to listen, every mistake."""

import base64
import contextlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd._version import __version__
from agentd.guest import listen, main, virtio

REQUEST = b'{"command":"echo","args":["hi"]}\n'
REPLY = b'{"exit_code":0,"stdout":"aGkK","stderr":"","error":null}\n'
# With a port that is open already; one of /sys and /dev takes a virtual machine.
VIRTIO = """
import sys
from agentd.guest import main, virtio
virtio.find = lambda name: name
virtio.open_port = int
sys.exit(main.main(["--listen", "virtio:" + sys.argv[1]]))
"""


def run(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "agentd.guest.main", *arguments]
    defaults: dict[str, Any] = {"input": b"", "capture_output": True, "timeout": 30}
    return subprocess.run(command, check=False, **(defaults | options))


@contextlib.contextmanager
def started(command: list[str], **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A running agent that has said that it listens; SIGTERM ends it, with status 0."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, **options) as process:
        assert process.stderr is not None
        try:
            assert b": listening on " in process.stderr.readline()
            yield process
            process.terminate()
            assert process.wait(120) == 0
            assert process.stderr.read().endswith(b"agentd-guest: stopped\n")
        finally:
            process.kill()


Start = Callable[..., contextlib.AbstractContextManager["subprocess.Popen[bytes]"]]


@pytest.fixture
def start() -> Start:
    def start(
        *arguments: str, **options: Any
    ) -> contextlib.AbstractContextManager["subprocess.Popen[bytes]"]:
        return started([sys.executable, "-m", "agentd.guest.main", *arguments], **options)

    return start


def ask(path: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(120)
        client.connect(path)
        client.sendall(REQUEST)
        with client.makefile("rb") as replies:
            return replies.readline()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["vsock:5000"]),
        (["--listen", "vsock:1"], ["vsock:1"]),
        (["--listen=unix:/a=b:c"], ["unix:/a=b:c"]),
        (["--listen", "stdio"], ["stdio"]),
        (["--listen", "virtio:agent.0"], ["virtio:agent.0"]),
        (["--listen", "fd:3"], ["fd:3"]),
        (["--listen=vsock:5", "--listen", "virtio:a"], ["vsock:5", "virtio:a"]),
        (["--listen=vsock:5", "--listen", "vsock:5"], ["vsock:5"]),
        (["--listen", "stdio", "-h"], ["help"]),
        (["--help"], ["help"]),
        (["--version"], ["version"]),
    ],
)
def test_arguments(arguments: list[str], expected: list[str]) -> None:
    assert main.parse(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["quiet"], "unknown argument 'quiet': see agentd-guest --help"),
        (["--listen"], f"--listen '': give {listen.FORMS}"),
        (["--listen", "tcp:1"], f"--listen 'tcp:1': give {listen.FORMS}"),
        (["--listen", "unix:"], f"--listen 'unix:': give {listen.FORMS}"),
        (["--listen", "stdio:"], f"--listen 'stdio:': give {listen.FORMS}"),
        (
            ["--listen", "vsock:x"],
            "--listen 'vsock:x': give vsock: and a number from 1 to 4294967294",
        ),
        (
            ["--listen=vsock:4294967295"],
            "--listen 'vsock:4294967295': give vsock: and a number from 1 to 4294967294",
        ),
        (
            ["--listen", "vsock:²"],
            "--listen 'vsock:²': give vsock: and a number from 1 to 4294967294",
        ),
        (["--listen", "fd:2"], "--listen 'fd:2': give fd: and a number from 3 to 1048576"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main.main(arguments) == 2
    got = capfd.readouterr()
    assert got.out == ""
    assert got.err == f"agentd-guest: {complaint}\n"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"agentd-guest {__version__}\n"
    assert main.main(["--help"]) == 0
    assert "agentd-guest --listen stdio" in capsys.readouterr().out


def test_help_loads_neither_the_agent_nor_an_argument_parser() -> None:
    code = (
        "import sys; from agentd.guest.main import main; main(['--help']);"
        "sys.exit(any(n in sys.modules for n in ('argparse', 'agentd.guest.agent', 'json')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode
        == 0
    )


def test_stdio_serves_until_the_end_of_the_input() -> None:
    done = run("--listen", "stdio", input=REQUEST + REQUEST)
    assert (done.returncode, done.stdout) == (0, REPLY + REPLY)


def test_stdio_commands_do_not_get_the_streams() -> None:
    script = "readlink /proc/$$/fd/*; cat"
    done = run("--listen", "stdio", input=b'["sh",["-c","%s"]]\n["echo"]\n' % script.encode())
    assert done.stdout.count(b"\n") == 2


def test_stdio_takes_a_socket_and_leaves_pipes_as_they_were() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, REQUEST)
        with subprocess.Popen(
            [sys.executable, "-m", "agentd.guest.main", "--listen", "stdio"],
            stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == REPLY
            assert not os.get_blocking(reader)
            process.terminate()
            assert process.wait(120) == 0
        assert os.get_blocking(reader)
    finally:
        os.close(reader)
        os.close(writer)


def test_stdio_writes_more_than_a_pipe_holds() -> None:
    done = run("--listen", "stdio", input=b'["head",["-c","3000000","/dev/zero"]]\n')
    assert len(done.stdout) == 4_000_000 + len(REPLY) - len("aGkK")


def test_stdio_from_a_plain_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "requests").write_bytes(REQUEST)
    with (tmp_path / "requests").open() as requests:
        done = run("--listen", "stdio", input=None, stdin=requests)
    assert done.returncode == 1
    assert done.stderr.startswith(b"agentd-guest: stdin is a plain file or /dev/null: pipe it in")
    assert done.stderr.count(b"\n") == 1


def test_a_unix_socket_is_for_its_owner_and_is_gone_at_the_end(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "agent.sock"
    with start("--listen", "unix:agent.sock", cwd=tmp_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ask(str(path)) == REPLY
        taken = run("--listen", f"unix:{path}")
        assert taken.returncode == 1
        assert b"something listens on" in taken.stderr
        assert ask(str(path)) == REPLY
    assert not path.exists()


def test_a_stale_socket_is_replaced(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
        old.listen()
    with start("--listen", f"unix:{path}"):
        assert ask(str(path)) == REPLY


def test_a_socket_that_another_agent_has_taken_over_is_left(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as other:
        with start("--listen", f"unix:{path}"):
            path.unlink()
            other.bind(str(path))
        assert path.exists()


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("unix:{}/file", "{}/file exists and is no socket: remove it or choose another path"),
        ("unix:{}/none/s", "cannot listen on unix:{}/none/s: No such file or directory"),
        (
            "unix:{}/" + "x" * 120,
            "cannot listen on unix:{}/" + "x" * 120 + ": AF_UNIX path too long",
        ),
        ("fd:77", "fd:77 is no open socket (Bad file descriptor): pass one"),
        ("virtio:nope", "no virtio port is named 'nope': choose one of those here ("),
    ],
)
def test_where_it_cannot_listen_it_says_so_and_ends(
    tmp_path: Path, where: str, complaint: str
) -> None:
    (tmp_path / "file").touch()
    done = run("--listen", where.format(tmp_path))
    assert done.returncode == 1
    assert done.stderr.decode().startswith("agentd-guest: " + complaint.format(tmp_path))
    assert done.stderr.count(b"\n") == 1
    assert (tmp_path / "file").exists()


def test_an_inherited_connected_socket_is_served_until_its_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(REQUEST)
        ours.shutdown(socket.SHUT_WR)
        fd = theirs.fileno()
        done = run("--listen", f"fd:{fd}", pass_fds=[fd])
        assert done.returncode == 0
        assert ours.recv(1000) == REPLY


def test_an_inherited_listening_socket_is_served(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        fd = listener.fileno()
        with start("--listen", f"fd:{fd}", pass_fds=[fd]):
            assert ask(str(tmp_path / "s")) == REPLY
            assert ask(str(tmp_path / "s")) == REPLY


def test_a_virtio_port_serves_one_host_after_the_other() -> None:
    # A PTY's master is like such a port: it hangs up while nobody has the other side open.
    master, slave = os.openpty()
    name = os.ttyname(slave)
    tty.setraw(slave)
    os.close(slave)
    try:
        command = [sys.executable, "-c", VIRTIO, str(master)]
        with started(command, pass_fds=[master]):
            for _ in range(3):
                host = os.open(name, os.O_RDWR | os.O_NOCTTY)
                try:
                    os.write(host, REQUEST)
                    got = b""
                    while not got.endswith(b"\n"):
                        assert select.select([host], [], [], 120)[0]
                        got += os.read(host, 1000)
                finally:
                    os.close(host)
                assert got == REPLY
    finally:
        os.close(master)


def test_of_several_places_one_will_do(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    arguments = ("--listen", "virtio:nope", "--listen", f"unix:{path}")
    command = [sys.executable, "-m", "agentd.guest.main", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b": no virtio port is named 'nope'" in process.stderr.readline()
        assert f": listening on unix:{path}, ".encode() in process.stderr.readline()
        assert ask(str(path)) == REPLY
        process.terminate()
        assert process.wait(120) == 0


def test_of_several_places_none_will_not(tmp_path: Path) -> None:
    done = run("--listen", "virtio:nope", "--listen", f"unix:{tmp_path}/no/s")
    assert done.returncode == 1
    assert b"nope" in done.stderr
    assert b"/no/s: No such file" in done.stderr


def test_the_end_of_one_place_is_not_the_end_of_the_others(tmp_path: Path) -> None:
    arguments = ("--listen", "stdio", "--listen", f"unix:{tmp_path}/s")
    command = [sys.executable, "-m", "agentd.guest.main", *arguments]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as process:
        assert process.stderr is not None
        assert process.stdin is not None
        assert b": listening on stdio, unix:" in process.stderr.readline()
        process.stdin.write(REQUEST)
        process.stdin.close()
        assert process.stdout is not None
        assert process.stdout.readline() == REPLY
        assert process.stdout.read() == b""
        assert ask(f"{tmp_path}/s") == REPLY
        process.terminate()
        assert process.wait(120) == 0


def test_virtio_ports_are_found_by_their_name(tmp_path: Path) -> None:
    for port, name in (("vport1p1", "agent.0\n"), ("vport1p2", "other\n")):
        (tmp_path / port).mkdir()
        (tmp_path / port / "name").write_text(name)
    (tmp_path / "vport1p3").mkdir()  # whose name has not come yet
    assert virtio.find("agent.0", str(tmp_path)) == "/dev/vport1p1"
    with pytest.raises(virtio.NoPort, match=r"choose one of those here \(agent.0, other\)"):
        virtio.find("agent.1", str(tmp_path))


def test_commands_of_a_stopped_agent_are_gone(start: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with start("--listen", f"unix:{path}"), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(120)
        client.connect(path)
        client.sendall(b'["sh",["-c","sleep 600 & echo $!"]]\n')
        reply = json.loads(client.recv(1000))
        assert reply["exit_code"] == 0
        sleeper = int(base64.b64decode(reply["stdout"]))
        os.kill(sleeper, signal.SIG_DFL)  # it is there
    with pytest.raises(ProcessLookupError):
        os.kill(sleeper, signal.SIG_DFL)
