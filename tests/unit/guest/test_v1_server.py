"""Protocol v1 spoken by a real process: recorded exchanges, and the first agent's defects."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

VECTORS = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "data" / "guest-v1.jsonl").read_text().splitlines()
]
# Serves v1 on a unix socket and, if one is inherited, on a connected socket.
AGENT = """
import json, os, socket, sys
from agentd.guest.loop import READ, Loop
from agentd.guest.processes import Processes
from agentd.guest.stream import HostStream
from agentd.guest.v1_server import V1Server

path, inherited, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
os.chdir("/")
os.umask(0o022)
loop = Loop()
processes = Processes(loop)

def serve(connected):
    stream = HostStream(loop, connected)
    connection = V1Server(stream, processes, **options)
    stream.start(connection)
    connection.start()

listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(128)
loop.watch(listener.fileno(), READ, lambda _: serve(listener.accept()[0]))
if inherited >= 0:
    serve(socket.socket(fileno=inherited))
print("ready", flush=True)
loop.run()
"""


class Client:
    """A connected socket that speaks lines of JSON."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(120)
        self.socket = connected

    def send(self, *requests: dict[str, Any] | bytes) -> None:
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in requests]
        self.socket.sendall(b"".join(lines))

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def read_all(self) -> bytes:
        """Everything until the agent ends the connection."""
        return b"".join(iter(lambda: self.socket.recv(1 << 16), b""))

    def reply(self) -> dict[str, Any]:
        """The next reply; its outputs decoded."""
        line = bytearray()
        while not line.endswith(b"\n"):
            # One at a time at the end, as nothing of the next reply may be taken.
            peeked = self.socket.recv(1 << 16, socket.MSG_PEEK)
            assert peeked, f"the connection ended after {bytes(line)!r}"
            line += self.socket.recv(peeked.find(b"\n") + 1 or len(peeked))
        reply: dict[str, Any] = json.loads(line)
        return reply | {name: base64.b64decode(reply[name]) for name in ("stdout", "stderr")}

    def run(self, *argv: str, **fields: Any) -> dict[str, Any]:
        self.send({"command": argv[0], "args": list(argv[1:]), **fields})
        return self.reply()


Connect = Callable[[], Client]


@contextlib.contextmanager
def agent(path: Path, inherited: int = -1, **options: int) -> Iterator[Connect]:
    """A running agent; the value connects to it. Its clients are closed with it."""
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", AGENT, str(path), str(inherited), json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                pass_fds=[inherited] if inherited >= 0 else [],
                # One recorded command counts the variables with an X in them.
                env={"PATH": os.environ["PATH"], "AGENTS_OWN": "kept"},
            )
        )
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"

        def connect() -> Client:
            connected = stack.enter_context(socket.socket(socket.AF_UNIX))
            connected.connect(str(path))
            return Client(connected)

        yield connect


@pytest.fixture(scope="module")
def connect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connect]:
    with agent(tmp_path_factory.mktemp("v1") / "agent.sock") as connect:
        yield connect


@pytest.fixture
def client(connect: Connect) -> Iterator[Client]:
    client = connect()
    with client.socket:
        yield client


def until(condition: Callable[[], bool]) -> bool:
    """Whether it came true within half a minute."""
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def comparable(reply: str) -> str:
    head, found, _ = reply.partition('"Invalid request: ')
    return head + found


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_recorded_exchange(client: Client, vector: dict[str, str]) -> None:
    client.send(base64.b64decode(vector["request_b64"]))
    client.half_close()
    got, expected = client.read_all().decode(), vector["reply"]
    if '"Invalid request: ' in expected:
        assert comparable(got) == comparable(expected)
        assert got.endswith('"}\n')
        assert got.count("\n") == 1
    else:
        assert got == expected


def test_recorded_exchanges_in_one_go_over_a_socket_pair(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, agent(tmp_path / "s", theirs.fileno()):
        theirs.close()
        client = Client(ours)
        client.send(*(base64.b64decode(vector["request_b64"]) for vector in VECTORS))
        client.half_close()
        replies = client.read_all().decode().splitlines(keepends=True)
    assert list(map(comparable, replies)) == [comparable(v["reply"]) for v in VECTORS]


def test_an_idle_client_holds_up_nobody(connect: Connect) -> None:
    idle, stuck = connect(), connect()
    with idle.socket, stuck.socket:
        stuck.send(b'{"command":"ec')
        clients = [connect() for _ in range(20)]
        for client in clients:
            client.send({"command": "echo", "args": ["hi"]})
        assert {client.reply()["stdout"] for client in clients} == {b"hi\n"}
        for client in clients:
            client.socket.close()
        stuck.send(b'ho"}\n')
        assert stuck.reply()["stdout"] == b"\n"


def test_commands_of_different_connections_run_at_once(connect: Connect, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader, writer = connect(), connect()
    with reader.socket, writer.socket:
        reader.send({"command": "cat", "args": [str(fifo)]})
        assert writer.run("sh", "-c", f"echo through > {fifo}")["exit_code"] == 0
        assert reader.reply()["stdout"] == b"through\n"


def test_a_megabyte_through_cat(client: Client) -> None:
    text = "0123456789abcdef" * (1 << 16)
    assert client.run("cat", stdin=text)["stdout"] == text.encode()


def test_a_child_that_never_reads_its_stdin_is_no_error(client: Client) -> None:
    assert client.run("true", stdin="x" * (1 << 20)) == {
        "exit_code": 0, "stdout": b"", "stderr": b"", "error": None,
    }  # fmt: skip


def test_a_grandchild_that_holds_the_pipe_does_not_hold_the_reply(client: Client) -> None:
    reply = client.run("sh", "-c", "sleep 600 & echo $!")
    os.kill(int(reply["stdout"]), signal.SIGKILL)
    assert reply["exit_code"] == 0


def test_children_get_no_descriptor_to_forge_or_steal_with(connect: Connect) -> None:
    code = "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in range(3)], *[n for n in range(3, 1024) if os.path.lexists(f'/proc/self/fd/{n}')])"  # noqa: E501
    first, second = connect(), connect()
    with first.socket, second.socket:
        first.send({"command": "sleep", "args": ["600"]})
        out = second.run(sys.executable, "-I", "-S", "-c", code)["stdout"].decode()
        assert out.startswith("['/dev/null', 'pipe:")
        assert out.endswith("']\n")


def test_stdin_is_dev_null_read_only_or_an_empty_pipe(client: Client) -> None:
    show = ("sh", "-c", "readlink /proc/$$/fd/0; grep flags /proc/$$/fdinfo/0; cat")
    null = client.run(*show)["stdout"].split()
    assert null[0] == b"/dev/null"
    assert int(null[2], 8) & os.O_ACCMODE == os.O_RDONLY
    assert client.run(*show, stdin="")["stdout"].startswith(b"pipe:")


def test_children_start_in_the_root_with_umask_022_and_the_merged_environment(
    client: Client,
) -> None:
    script = "pwd; umask; echo $AGENTS_OWN $ADDED"
    reply = client.run("sh", "-c", script, env={"ADDED": "too"})
    assert reply["stdout"] == b"/\n0022\nkept too\n"


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({"command": "/etc/passwd/x"}, 20),
        ({"command": "/"}, 13),
        ({"command": "true", "cwd": "/etc/passwd"}, 20),
        ({"command": "true", "args": ["x" * (1 << 20)]}, 7),
        ({"command": "true", "cwd": ""}, 2),
    ],
)
def test_a_spawn_failure_has_the_kernels_number(
    client: Client, fields: dict[str, Any], number: int
) -> None:
    client.send(fields)
    reply = client.reply()
    assert reply["exit_code"] == -1
    assert reply["error"] == (f"Failed to spawn process: {os.strerror(number)} (os error {number})")


def test_a_script_without_an_interpreter_line_is_not_run_by_a_shell(
    client: Client, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("echo run\n")
    script.chmod(0o755)
    expected = "Failed to spawn process: Exec format error (os error 8)"
    assert client.run(str(script))["error"] == expected
    assert client.run("script", env={"PATH": str(tmp_path)})["error"] == expected


def test_requests_may_be_pipelined_and_are_answered_in_order(client: Client) -> None:
    client.send(*({"command": "echo", "args": [str(n)]} for n in range(50)), b"junk\n")
    replies = [client.reply() for _ in range(51)]
    assert [reply["stdout"] for reply in replies[:50]] == [b"%d\n" % n for n in range(50)]
    assert replies[50]["error"].startswith("Invalid request: ")


def test_a_client_that_pipelines_without_end_is_held_up(connect: Connect) -> None:
    client = connect()
    with client.socket:
        client.send({"command": "sleep", "args": ["600"]})
        client.socket.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 64 << 20:
                sent += client.socket.send(b" " * 65536)
        assert sent < 16 << 20


def test_the_last_line_needs_no_newline(client: Client) -> None:
    client.send(b'["echo",["one"]]\n["echo",["two"]]')
    client.half_close()
    replies = client.read_all().splitlines()
    assert [base64.b64decode(json.loads(r)["stdout"]) for r in replies] == [b"one\n", b"two\n"]


def test_a_half_close_does_not_end_the_command(client: Client, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    client.send(
        {"command": "sh", "args": ["-c", f"until [ -e {flag} ]; do sleep .02; done; echo done"]}
    )
    client.half_close()
    flag.touch()
    assert client.reply()["stdout"] == b"done\n"
    assert client.read_all() == b""


@pytest.mark.parametrize("half_closed", [False, True])
def test_a_client_that_is_gone_takes_its_process_group_along(
    connect: Connect, tmp_path: Path, half_closed: bool
) -> None:
    pids = tmp_path / "pids"
    client = connect()
    script = f"sleep 600 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait"
    client.send({"command": "sh", "args": ["-c", script]})
    if half_closed:
        client.half_close()
    assert until(pids.exists)
    group = list(map(int, pids.read_text().split()))
    assert all(map(alive, group))
    client.socket.close()
    assert until(lambda: not any(map(alive, group)))


def test_a_time_limit_kills_the_group_and_says_so(client: Client) -> None:
    for milliseconds in (300, 1000, 5000, 25_000):  # a busy machine may need more until it is up
        reply = client.run("sh", "-c", "sleep 600 & echo $!; wait", timeout_ms=milliseconds)
        assert reply["exit_code"] == -1
        assert reply["error"] == f"time limit of {milliseconds} ms exceeded"
        if reply["stdout"]:
            break
    assert until(lambda: not alive(int(reply["stdout"])))


def test_a_line_that_is_not_utf8_ends_the_connection_without_a_reply(client: Client) -> None:
    client.send(b'["echo",["hi"]]\n', b"\xff\n", b'["echo",["never"]]\n')
    replies = client.read_all().splitlines()
    assert [json.loads(reply)["stdout"] for reply in replies] == ["aGkK"]


def test_lines_of_white_space_are_skipped(client: Client) -> None:
    client.send("\r\n \u3000\x85\n\n".encode(), {"command": "echo"})
    client.half_close()
    assert client.read_all().count(b"\n") == 1


def test_a_large_reply_reaches_a_client_that_has_half_closed(client: Client) -> None:
    client.send({"command": "head", "args": ["-c", "8000000", "/dev/zero"]})
    client.half_close()
    reply = json.loads(client.read_all())
    assert base64.b64decode(reply["stdout"]) == bytes(8_000_000)


class TestBounds:
    @pytest.fixture
    def client(self, tmp_path: Path) -> Iterator[Client]:
        with agent(tmp_path / "s", max_line=1000, max_output=5000) as connect:
            yield connect()

    @pytest.mark.parametrize("redirect", ["", ">&2"])
    def test_a_flood_is_cut_off_and_its_group_killed(self, client: Client, redirect: str) -> None:
        reply = client.run("sh", "-c", f"sleep 600 & yes $! {redirect}; sleep 600")
        stdout, stderr = reply["stdout"], reply["stderr"]
        assert max(len(stdout), len(stderr)) == 5000
        assert reply["exit_code"] == -1
        assert reply["error"] == "output limit of 5000 bytes exceeded"
        assert until(lambda: not alive(int((stdout or stderr).split()[0])))

    def test_as_much_as_the_bound_is_no_error(self, client: Client) -> None:
        reply = client.run("head", "-c", "5000", "/dev/zero")
        assert (len(reply["stdout"]), reply["error"]) == (5000, None)

    def test_a_long_line_is_refused_and_its_rest_discarded(self, client: Client) -> None:
        client.send(b'["echo",["' + b"x" * 100_000 + b'"]]\n', {"command": "echo"})
        assert client.reply()["error"] == "Invalid request: line is over the limit of 1000 bytes"
        assert client.reply()["stdout"] == b"\n"
