"""The real client and the real agent, in a process of its own, over socket pairs."""

import array
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from agentd.guest import wire
from agentd.model.errors import BackendLost, OperationFailed
from agentd.model.result import CauseCode
from agentd.model.spec import ExecRequest, Pty
from agentd.transport.guest import Guest

MIB = 1 << 20
AGENT = """
import socket, sys
from agentd.guest.agent import Ready, preload
preload()
Ready(pid1=False).serve(socket.socket(fileno=int(sys.argv[1])))
"""


class Agent:
    """Streams are passed to it over a SEQPACKET socket, whose end ends it."""

    def __init__(self) -> None:
        self._listener, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", AGENT, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )

    def open_stream(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            rights = array.array("i", [theirs.fileno()])
            self._listener.sendmsg([b"s"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        return ours

    def close(self) -> None:
        self._listener.close()
        assert self.process.wait(120) == 0


@pytest.fixture(scope="module")
def agent():
    agent = Agent()
    # Its start is over before the first test counts the processes.
    first = Guest(agent.open_stream, passes_descriptors=False)
    first.call("sys.ping")
    first.close()
    yield agent
    agent.close()


@pytest.fixture(params=[False, True], ids=["in-band", "passed-descriptors"])
def guest(agent, request):
    guest = Guest(agent.open_stream, passes_descriptors=request.param)
    yield guest
    guest.close()


def sh(script, **fields):
    return ExecRequest(("sh", "-c", script), **fields)


def alive(pid):
    """Whether it runs: a zombie has ended."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_streams_codes_and_places(guest, tmp_path):
    request = sh("pwd; echo $WORD; echo err >&2; exit 3", cwd=str(tmp_path), env={"WORD": "hi"})
    end, out, err, truncated = guest.run(request)
    assert (end.exit_code, end.signal, end.cause.code) == (3, None, CauseCode.EXITED)
    assert (out, err, truncated) == (f"{tmp_path}\nhi\n".encode(), b"err\n", False)
    assert end.usage.wall_ms > 0
    end = guest.run(sh("kill -TERM $$"))[0]
    assert (end.exit_code, end.signal, end.cause.code) == (None, 15, CauseCode.SIGNALLED)


def test_what_cannot_be_started(guest):
    end = guest.run(ExecRequest(("no-such-program",)))[0]
    assert (end.exit_code, end.cause.code) == (127, CauseCode.SPAWN_FAILED)
    assert end.cause.message == "no-such-program: No such file or directory (stage exec)"
    assert guest.run(ExecRequest(("/etc/passwd",)))[0].exit_code == 126


def test_64_mib_go_out_whole(guest, tmp_path):
    data = os.urandom(MIB) * 64
    (tmp_path / "data").write_bytes(data)
    with guest.start(ExecRequest(("cat", str(tmp_path / "data")))) as running:
        digest = hashlib.sha256()
        for name, chunk in running.chunks():
            assert name == "stdout"
            digest.update(chunk)
        assert running.wait().ok
    assert digest.digest() == hashlib.sha256(data).digest()


def test_64_mib_go_in_whole(guest):
    data = os.urandom(MIB) * 64
    end, out, _, _ = guest.run(ExecRequest(("sha256sum",)), stdin=data)
    assert end.ok
    assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_both_ways_at_once(guest):
    piece = os.urandom(MIB)
    sent, got = hashlib.sha256(), hashlib.sha256()
    with guest.start(ExecRequest(("cat",), stdin=True)) as running:
        for _ in range(16):
            running.write(piece)
            sent.update(piece)
            while running.backlog > MIB // 2:
                for _, chunk in running.step()[0]:
                    got.update(chunk)
        running.close_stdin()
        for _, chunk in running.chunks():
            got.update(chunk)
        assert running.wait().ok
    assert got.digest() == sent.digest()


def test_a_command_that_does_not_read_its_stdin(guest):
    end, out, _, _ = guest.run(sh("echo done"), stdin=bytes(4 * MIB))
    assert (end.ok, out) == (True, b"done\n")


def test_limits(guest):
    end = guest.run(sh("sleep 30", timeout=0.1))[0]
    assert (end.cause.code, end.signal) == (CauseCode.TIMEOUT, 9)
    end, out, _, truncated = guest.run(ExecRequest(("yes",), output_limit=10_000))
    assert (end.cause.code, out, truncated) == (
        CauseCode.OUTPUT_LIMIT,
        b"y\n" * 5000,
        True,
    )
    for size, code in ((10_000, CauseCode.EXITED), (10_001, CauseCode.OUTPUT_LIMIT)):
        # It may have ended before the excess is seen.
        request = ExecRequest(("head", "-c", str(size), "/dev/zero"), output_limit=10_000)
        end, out, _, truncated = guest.run(request)
        assert (end.cause.code, len(out), truncated) == (code, 10_000, size > 10_000)


def test_kill_signal_and_leaving(guest):
    with guest.start(sh("echo up; sleep 30")) as running:
        assert next(running.chunks()) == ("stdout", b"up\n")
        running.kill()
        end = running.wait(120)
    assert (end.cause.code, end.signal) == (CauseCode.CANCELLED, 9)
    with guest.start(
        sh("trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.01; done")
    ) as r:
        assert next(r.chunks()) == ("stdout", b"up\n")
        r.signal(signal.SIGTERM)
        # The shell speaks of its killed sleep on stderr.
        assert [c for c in r.chunks() if c[0] == "stdout"] == [("stdout", b"bye\n")]
        assert r.wait().exit_code == 4
    with guest.start(sh("echo up; sleep 30")) as running:
        assert next(running.chunks()) == ("stdout", b"up\n")
        pid = running.pid
        assert alive(pid)
    until(lambda: not alive(pid))


def test_a_grandchild_with_the_pipe_does_not_hold_the_end_back(guest):
    end, out, _, _ = guest.run(sh("sleep 300 & echo $!"))
    try:
        assert end.ok
        assert alive(int(out))
    finally:
        os.kill(int(out), signal.SIGKILL)


def test_a_terminal(guest):
    with guest.start(ExecRequest(("sh",), pty=Pty(10, 20))) as running:
        running.write(b"stty size; tty >/dev/null && echo is-a-tty\n")
        seen = b""
        while b"\nis-a-tty" not in seen:
            seen += b"".join(data for _, data in running.step(10)[0])
        assert b"10 20" in seen
        running.resize(33, 44)
        running.write(b"stty size; exit 5\n")
        assert b"33 44" in b"".join(data for _, data in running.chunks())
        assert running.wait().exit_code == 5


def test_detached_commands_are_followed_and_ended(guest):
    pid = guest.start_detached(sh("echo one; echo two >&2; exec sleep 30", tag=f"job-{id(guest)}"))
    (process,) = [p for p in guest.processes() if p.pid == pid]
    assert process.state == "running"
    until(lambda: [p.stdout_bytes for p in guest.processes() if p.pid == pid] == [4])
    with guest.attach(f"job-{id(guest)}", (1, 0)) as running:
        seen = b""
        while len(seen) < 7:
            seen += b"".join(data for _, data in running.step(10)[0])
        assert (running.pid, running.cursor) == (pid, (1, 0))
        assert sorted(seen) == sorted(b"ne\ntwo\n")
    assert alive(pid)
    guest.signal(pid, signal.SIGKILL)
    with guest.attach(pid) as late:
        assert late.wait(120).signal == 9


def test_files(guest, tmp_path):
    files, data = guest.files, os.urandom(3 * MIB + 5)
    path = f"{tmp_path}/a/b/file"
    assert files.write(path, data, mode=0o600, parents=True) == len(data)
    assert files.read(path) == data
    assert files.read(path, 1000, 17) == data[1000:1017]
    assert hashlib.sha256(b"".join(files.read_iter(path))).digest() == hashlib.sha256(data).digest()
    entry = files.stat(path)
    assert (entry.name, entry.type, entry.size, entry.mode & 0o777) == (
        "file",
        "file",
        len(data),
        0o600,
    )
    files.mkdir(f"{tmp_path}/a/c")
    (tmp_path / "a" / os.fsdecode(b"odd\xff")).touch()
    assert sorted(e.name for e in files.list(f"{tmp_path}/a")) == ["b", "c", "odd\udcff"]
    assert files.stat(f"{tmp_path}/a/odd\udcff").type == "file"
    files.move(path, f"{tmp_path}/a/c/moved")
    assert files.read(f"{tmp_path}/a/c/moved", length=5) == data[:5]
    files.remove(f"{tmp_path}/a", recursive=True)
    with pytest.raises(OperationFailed, match="No such file") as caught:
        files.read(path)
    assert caught.value.errno == 2


def test_many_entries(guest, tmp_path):
    for number in range(2500):
        (tmp_path / str(number)).touch()
    assert len({entry.name for entry in guest.files.list(str(tmp_path))}) == 2500


def test_watch(guest, tmp_path):
    changes = guest.files.watch(str(tmp_path))
    (tmp_path / "new").touch()
    change = next(changes)
    changes.close()
    assert (change.kind, change.path) == ("create", f"{tmp_path}/new")


def test_a_tunnel(guest):
    data = os.urandom(2 * MIB)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo():
            stream, _ = server.accept()
            with stream:
                while piece := stream.recv(65536):
                    stream.sendall(piece)

        thread = threading.Thread(target=echo)
        thread.start()
        got = bytearray()
        with guest.tunnel(server.getsockname()[1]) as tunnel:
            for start in range(0, len(data), 65536):
                tunnel.send(data[start : start + 65536])
                while len(got) < start:
                    got += tunnel.recv(10)
            tunnel.half_close()
            while piece := tunnel.recv(10):
                got += piece
        thread.join(120)
        port = server.getsockname()[1]
    assert got == data
    with pytest.raises(OperationFailed, match="Connection refused"):
        guest.tunnel(port)


def test_the_agents_own_operations(guest):
    assert guest.call("sys.ping")["unix_ns"] > 0
    with pytest.raises(OperationFailed):
        guest.call("sys.nonsense")
    assert guest.call("sys.info")


def test_many_at_once(guest):
    results = []

    def work(number):
        for turn in range(5):
            word = f"{number}.{turn}"
            results.append(guest.run(ExecRequest(("echo", word)))[1] == f"{word}\n".encode())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert results == [True] * 60


def test_an_agent_that_is_killed_is_a_lost_backend():
    agent = Agent()
    guest = Guest(agent.open_stream, passes_descriptors=True)
    try:
        with guest.start(sh("echo $$; exec sleep 30")) as running:
            pid = int(next(running.chunks())[1])
            agent.process.kill()
            with pytest.raises(BackendLost):
                running.wait(120)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    finally:
        guest.close()
        agent._listener.close()
        agent.process.wait()


def test_a_v1_client_is_served_too(agent):
    with agent.open_stream() as stream, stream.makefile("rb") as reader:
        stream.sendall(b'{"command":"echo","args":["hi"]}\n')
        assert reader.readline() == b'{"exit_code":0,"stdout":"aGkK","stderr":"","error":null}\n'
    assert wire.HELLO == b'{"agentd":2}\n'
