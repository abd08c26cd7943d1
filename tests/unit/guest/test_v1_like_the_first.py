"""Where v1 differed from the first guest agent: asked of an agent as started, byte for byte."""

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.guest import v1_server
from agentd.guest.loop import Loop
from agentd.guest.processes import Processes
from agentd.guest.stream import LINGER_S, HostStream

MODULE = [sys.executable, "-m", "agentd.guest.main"]
# What a kernel or systemd gives. Python finds the C locale in it.
BARE = {"HOME": "/", "PATH": "/usr/bin:/bin"}
# Under a name, at a unix socket in the place of the vsock port, with so much memory to hold.
SMALL = """
import sys
from agentd.guest import budget, listener, main
sys.argv[0] = "/sbin/" + sys.argv[1]
path, size = sys.argv[2], int(sys.argv[3])
listener.vsock_socket = lambda port: listener.unix_socket(path)
budget.of_machine = lambda line: budget.Budget(size, line)
sys.exit(main.main(sys.argv[4:]))
"""
WHITE_SPACE = [
    chr(number)
    for number in (
        *(0x09, 0x0B, 0x0C, 0x0D, 0x20, 0x85, 0xA0, 0x1680),
        *range(0x2000, 0x200B),
        *(0x2028, 0x2029, 0x202F, 0x205F, 0x3000),
    )
]
OTHERS = [chr(number) for number in (0x1C, 0x1D, 0x1E, 0x1F, 0x180E, 0x200B, 0x2060, 0xFEFF, 0)]
ECHO = '{"command":"echo","args":["hi"]}'
SAYS_HI = b'{"exit_code":0,"stdout":"aGkK","stderr":"","error":null}\n'


@contextlib.contextmanager
def agent(path: Path, **env: str) -> Iterator[str]:
    command = [*MODULE, "--listen", f"unix:{path}"]
    with subprocess.Popen(command, env=BARE | env, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b": listening on " in process.stderr.readline()
        yield str(path)
        process.terminate()
        assert process.wait(120) == 0


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with agent(tmp_path_factory.mktemp("first") / "agent.sock") as path:
        yield path


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(120)
    client.connect(path)
    return client


def exchange(path: str, data: bytes) -> bytes:
    """All that comes for it, on a connection that says no more."""
    with connect(path) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def run(path: str, *argv: str, **fields: Any) -> dict[str, Any]:
    line = json.dumps({"command": argv[0], "args": argv[1:], **fields}).encode() + b"\n"
    reply: dict[str, Any] = json.loads(exchange(path, line))
    return reply | {name: base64.b64decode(reply[name]) for name in ("stdout", "stderr")}


def name_of(character: str) -> str:
    return unicodedata.name(character, f"U+{ord(character):04X}")


@pytest.mark.parametrize("space", WHITE_SPACE, ids=name_of)
def test_white_space_around_a_request_is_dropped(path: str, space: str) -> None:
    for text in (space + ECHO, ECHO + space, space * 3 + ECHO + space, ECHO + space + "\r"):
        assert exchange(path, text.encode() + b"\n") == SAYS_HI
        assert exchange(path, text.encode()) == SAYS_HI
    within = ECHO.replace(":", ":" + space, 1)
    whole = exchange(path, within.encode() + b"\n")
    assert whole == SAYS_HI if space in "\t\r " else whole.startswith(b'{"exit_code":-1')


@pytest.mark.parametrize("other", OTHERS, ids=name_of)
def test_nothing_else_around_a_request_is(path: str, other: str) -> None:
    for text in (other + ECHO, ECHO + other, other):
        found = exchange(path, text.encode() + b"\n")
        assert found.startswith(
            b'{"exit_code":-1,"stdout":"","stderr":"","error":"Invalid request: '
        )


def test_a_child_has_the_locale_that_the_agent_was_given(path: str, tmp_path: Path) -> None:
    assert run(path, "env")["stdout"] == b"HOME=/\nPATH=/usr/bin:/bin\n"
    assert run(path, "wc", "-m", stdin="\u00e9")["stdout"] == b"2\n"
    for given in ("C", "C.UTF-8"):
        with agent(tmp_path / given, LC_CTYPE=given) as other:
            assert f"LC_CTYPE={given}\n".encode() in run(other, "env")["stdout"]


def test_it_stands_where_it_stood(tmp_path: Path) -> None:
    """Without variables of its own a command has the agent's, in their order."""
    with agent(tmp_path / "agent.sock", LC_CTYPE="C", LAST="1") as other:
        found = run(other, "env")["stdout"]
    assert found == b"HOME=/\nPATH=/usr/bin:/bin\nLC_CTYPE=C\nLAST=1\n"


@pytest.mark.root
def test_so_it_has_where_no_proc_says_what_that_was(tmp_path: Path) -> None:
    """As in a chroot."""
    script = 'umount -l /proc && exec env -u PWD "$@"'
    for given in ({}, {"LC_CTYPE": "C.UTF-8"}):
        found = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *MODULE, "--listen", "stdio"],
            env=BARE | given,
            input=b'["/usr/bin/env"]',
            capture_output=True,
            timeout=120,
            check=True,
        )
        names = base64.b64decode(json.loads(found.stdout)["stdout"]).splitlines()
        assert set(names) == {f"{name}={value}".encode() for name, value in (BARE | given).items()}


@pytest.mark.parametrize("cwd", ["/proc/self", "proc/self", "/proc/thread-self", "/dev/fd"])
def test_a_child_that_starts_in_itself_is_in_itself(path: str, cwd: str) -> None:
    """``/proc/self`` was the agent's own."""
    script = "case $(pwd -P)/ in /proc/$$/*) echo its own;; *) pwd -P;; esac"
    assert run(path, "sh", "-c", script, cwd=cwd)["stdout"] == b"its own\n"
    assert run(path, "/nowhere", cwd=cwd)["error"].endswith("(os error 2)")


def test_an_environment_that_is_merged_is_in_order(path: str) -> None:
    assert run(path, "env", env={})["stdout"] == b"HOME=/\nPATH=/usr/bin:/bin\n"
    found = run(path, "env", env={"Z": "1", "a": "2", "A": "3", "HOME": "/x", "_": "4"})
    assert found["stdout"] == b"A=3\nHOME=/x\nPATH=/usr/bin:/bin\nZ=1\n_=4\na=2\n"
    # Names that only fork and exec can give are no exception.
    odd = run(path, "/usr/bin/env", env={"B=": "1", "": "2", "A": "3"})
    assert odd["stdout"] == b"=2\nA=3\nB==1\nHOME=/\nPATH=/usr/bin:/bin\n"


class TestSearch:
    @pytest.fixture
    def places(self, tmp_path: Path) -> Path:
        (tmp_path / "good").mkdir()
        script = tmp_path / "good" / "tool"
        script.write_text('#!/bin/sh\necho "$0"\n')
        script.chmod(0o755)
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "file").write_text("")
        (tmp_path / "empty").mkdir()
        (tmp_path / "denied").mkdir()
        (tmp_path / "denied" / "tool").write_text("")
        return tmp_path

    @pytest.mark.parametrize(
        ("elements", "name", "code"),
        [
            ("loop:good", "tool", 40),
            ("{long}:good", "tool", 36),
            ("good", "{long}", 36),
            ("none", "{long}", 36),
            ("empty:file", "tool", 20),
            ("file:empty", "tool", 2),
            ("denied:file", "tool", 13),
            ("denied:loop", "tool", 40),
            ("empty:{longer}", "tool", 2),
            ("file:{longer}", "tool", 20),
        ],
    )
    def test_why_nothing_is_found(
        self, path: str, places: Path, elements: str, name: str, code: int
    ) -> None:
        long = {"long": "x" * 256, "longer": "y" * 4096}
        search = ":".join(f"{places}/{e}" for e in elements.split(":")).format(**long)
        found = run(path, name.format(**long), env={"PATH": search})
        reason = f"{os.strerror(code)} (os error {code})"
        assert (found["exit_code"], found["error"]) == (-1, f"Failed to spawn process: {reason}")

    @pytest.mark.parametrize("elements", ["file:good", "empty:good:loop", "{longer}:good"])
    def test_what_is_passed_over(self, path: str, places: Path, elements: str) -> None:
        search = ":".join(f"{places}/{e}" for e in elements.split(":")).format(longer="y" * 4096)
        assert run(path, "tool", env={"PATH": search})["stdout"] == f"{places}/good/tool\n".encode()

    @pytest.mark.parametrize("search", ["", ":/none", "/none::/none", "/none:"])
    def test_a_script_of_the_working_directory_has_its_bare_name(
        self, path: str, places: Path, search: str
    ) -> None:
        found = run(path, "tool", cwd=f"{places}/good", env={"PATH": search})
        assert found["stdout"] == b"tool\n"

    @pytest.mark.parametrize(("cwd", "code"), [("file", 20), ("loop", 40), ("none", 2), ("", 2)])
    def test_no_command_in_no_directory(self, path: str, places: Path, cwd: str, code: int) -> None:
        error = run(path, "", cwd=f"{places}/{cwd}")["error"]
        assert error.endswith(f"(os error {code})")


class Watched(Loop):
    """A loop that remembers what it was asked to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def after(self, seconds: float, callback: Any) -> Any:
        self.waits.append(seconds)
        return super().after(seconds, callback)


@pytest.mark.parametrize(
    "request_",
    [ECHO.encode(), b"[]", ECHO.encode() + b"\n\xff\n", b'["seq",["200000"]]', b'["seq",["9"]]\n'],
    ids=["no newline", "no request", "no text behind it", "a long reply", "newline"],
)
def test_the_end_is_told_as_soon_as_the_last_reply_has_left(request_: bytes) -> None:
    loop = Watched()
    processes = Processes(loop)
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(request_)
        ours.shutdown(socket.SHUT_WR)
        ours.setblocking(False)
        received = bytearray()

        def read(_: int) -> None:
            data = ours.recv(1 << 16)
            received.extend(data)
            if not data:
                loop.stop()

        def reap() -> None:
            """An agent has one thread; here another of pytest's may be given the signal instead."""
            processes.reap()
            Loop.after(loop, 0.05, reap)

        loop.watch(ours.fileno(), 1, read)
        stream = HostStream(loop, theirs)
        connection = v1_server.V1Server(stream, processes)
        stream.start(connection)
        connection.start()
        reap()
        loop.run()
        stream.close()
        processes.close()
        loop.close()
    assert received.count(b"\n") == 1
    # Nothing but the wait for the peer's own end, which has come.
    assert set(loop.waits) <= {LINGER_S}


def test_ten_megabytes_of_stdin(path: str) -> None:
    text = "0123456789abcde\n" * (10 << 16)
    assert run(path, "cat", stdin=text)["stdout"] == text.encode()
    wide = "\u00e9" * (5 << 20)
    assert run(path, "wc", "-c", stdin=wide)["stdout"] == b"10485760\n"


def test_a_longer_line_than_32_mib_is_refused_and_its_rest_dropped(path: str) -> None:
    line = b'["echo",["' + b"x" * (33 << 20) + b'"]]\n'
    first, second = exchange(path, line + ECHO.encode() + b"\n").splitlines(keepends=True)
    assert b"Invalid request: line is over the limit of " in first
    assert second == SAYS_HI


@pytest.mark.parametrize("value", ["{}", '"ab"', '"":{"":[]}'])
def test_a_request_of_millions_of_values_is_refused_before_they_are_made(
    tmp_path: Path, value: str
) -> None:
    """They took up to 1.8 GB of the agent, which no OOM killer ends, and a minute."""
    within = "{%s}" if value.startswith('"":') else "[%s]"
    many = ",".join([value] * ((30 << 20) // (len(value) + 1)))
    line = f'{{"command":"true","x":{within % many}}}\n'.encode()
    path = tmp_path / "s"
    with small(path, 64 << 20) as process:
        assert b"listening" in process.stderr.readline()
        first, second = exchange(str(path), line + ECHO.encode()).splitlines(keepends=True)
        peak = Path(f"/proc/{process.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
    assert b"Invalid request: it has over 1048576 values: give fewer" in first
    assert second == SAYS_HI
    assert int(peak) < 256 << 10  # KiB


def test_what_texts_hold_are_no_values(path: str) -> None:
    table = '1,{2},[3],"4",\\\n' * (200 << 10)
    assert run(path, "cat", stdin=table)["stdout"] == table.encode()
    # Its texts never end, and hold as many quotes as they can.
    for open_end in ('{"x":"' + '\\"' * (8 << 20), '["' + "\\" * (8 << 20), "[" + ",[" * (8 << 20)):
        found = exchange(path, open_end.encode() + b"\n")
        assert found.startswith(b'{"exit_code":-1,"stdout":"","stderr":"","error":"Invalid request')


def test_as_many_arguments_as_a_program_can_be_given_and_more(path: str) -> None:
    assert run(path, "true", *["x"] * 10_000)["error"] is None
    error = "Failed to spawn process: Argument list too long (os error 7)"
    assert run(path, "true", *["x"] * 1_000_000)["error"] == error


def small(
    path: Path, size: int, name: str = "agentd-guest", *arguments: str
) -> contextlib.AbstractContextManager[Any]:
    return started([sys.executable, "-c", SMALL, name, str(path), str(size), *arguments])


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[Any]:
    with subprocess.Popen(command, env=BARE, stderr=subprocess.PIPE) as process:
        try:
            yield process
            process.terminate()
            assert process.wait(120) == 0
        finally:
            process.kill()


def test_short_replies_arrive_whatever_others_hold(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with small(path, 3_000_000) as process, contextlib.ExitStack() as stack:
        assert b"listening" in process.stderr.readline()
        # Together more than there is: nothing is left of it.
        for size in (3_000_000, 1_000_000):
            client = stack.enter_context(connect(str(path)))
            client.sendall(b'["head",["-c","%d","/dev/zero"]]\n' % size)
            assert client.recv(1, socket.MSG_PEEK)  # its reply has begun, and nobody reads on
        assert run(str(path), "echo", "on")["stdout"] == b"on\n"


def test_all_outputs_together_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with small(path, 5_000_000) as process, contextlib.ExitStack() as stack:
        assert b"listening" in process.stderr.readline()
        clients = [stack.enter_context(connect(str(path))) for _ in range(4)]
        for client in clients:
            client.sendall(b'["head",["-c","2000000","/dev/zero"]]\n')
            # Its reply has begun, and nobody reads on: the most of it stays in the agent.
            assert client.recv(1, socket.MSG_PEEK)
        replies = []
        for client in clients:
            with client.makefile("rb") as lines:
                replies.append(json.loads(lines.readline()))
        assert [reply["error"] for reply in replies[:2]] == [None, None]
        full = "output limit of 5000000 bytes for all connections exceeded"
        assert [reply["error"] for reply in replies[2:]] == [full, full]
        # What was sent is not held any more.
        assert all(run(str(path), "seq", "400000")["error"] is None for _ in range(3))


def test_lines_count_too_and_short_ones_are_always_served(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with small(path, 1_000_000) as process, contextlib.ExitStack() as stack:
        assert b"listening" in process.stderr.readline()
        other = stack.enter_context(connect(str(path)))
        other.sendall(b'["wc",["-c"],null,{},"' + b"x" * 900_000)
        long = b'["wc",["-c"],null,{},"' + b"x" * 900_000 + b'"]\n'
        first, second = exchange(str(path), long + ECHO.encode() + b"\n").splitlines(keepends=True)
        assert b"as long as other connections hold so much" in first
        assert second == SAYS_HI
        other.sendall(b'"]\n')
        with other.makefile("rb") as lines:
            assert json.loads(lines.readline())["error"] is None
        assert b"OTAwMDAwCg==" in exchange(str(path), long)


def test_as_fc_guest_agent_it_says_what_the_first_one_said(tmp_path: Path) -> None:
    path = tmp_path / "s"
    arguments = ["--listen", "unix:/none", "quiet", "--version"]
    with small(path, 1 << 20, "fc-guest-agent", *arguments) as process:
        said = [process.stderr.readline() for _ in range(2)]
        assert said == [
            b"fc-guest-agent: Starting...\n",
            b"fc-guest-agent: Listening on vsock port 5000\n",
        ]
        assert exchange(str(path), ECHO.encode() + b"\n") == SAYS_HI
        said = [process.stderr.readline() for _ in range(2)]
        assert said == [
            b"fc-guest-agent: Accepted connection\n",
            b"fc-guest-agent: Connection closed\n",
        ]
        process.terminate()
        assert process.stderr.read() == b""


# The kernel has no vsock at first, as before its driver is there, and init's child tries on.
LATE = """
import errno, os, sys
from agentd.guest import listener, main
tries = []

def open_port(port):
    os.write(2, b"tried\\n")
    tries.append(port)
    if len(tries) < 3:
        raise OSError(errno.EAFNOSUPPORT, "none yet")
    return listener.unix_socket(sys.argv[1])

class TryingOn(main.ListenPlaces):
    def __init__(self, agent, places, *, keep_trying):
        super().__init__(agent, places, keep_trying=True)

listener.vsock_socket, main.ListenPlaces = open_port, TryingOn
sys.argv[0] = "/sbin/fc-guest-agent"
sys.exit(main.main([]))
"""


def test_as_fc_guest_agent_it_says_that_it_listens_once_it_does(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with started([sys.executable, "-c", LATE, path]) as process:
        said = [process.stderr.readline() for _ in range(6)]
        assert said[0] == b"fc-guest-agent: Starting...\n"
        assert said[2].endswith(b", trying on\n")
        assert [said[1], *said[3:]] == [
            *[b"tried\n"] * 3,
            b"fc-guest-agent: Listening on vsock port 5000\n",
        ]
        assert exchange(path, ECHO.encode() + b"\n") == SAYS_HI
