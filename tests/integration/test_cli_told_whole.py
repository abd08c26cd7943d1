"""What is told of a daemon is told whole: as JSON, and where a connection breaks."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, Later, running

from agentd import Sandbox


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def _begun(daemon: Daemon, box: str, cmd: str) -> str:
    body = {"cmd": cmd, "wait": False}
    found: str = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", body).json["id"]
    return found


def _file(daemon: Daemon, box: str, name: str) -> None:
    path = f"/v1/sandboxes/{box}/files?path=/workspace/{name}"
    assert daemon.ask("PUT", path, b"").status == 200


def test_attach_captures_what_it_tells_as_json(daemon: Daemon) -> None:
    box = daemon.sandbox()
    script = "echo one; echo err >&2; until [ -e go ]; do sleep .05; done; echo two; exit 3"
    process = _begun(daemon, box, script)
    attached = Later(lambda: daemon.cli("attach", "--all", "--json", box, process))
    _file(daemon, box, "go")
    done = attached.answer()
    told = json.loads(done.stdout)
    assert (told["stdout"], told["stderr"], told["exit_code"]) == ("one\ntwo\n", "err\n", 3)
    assert done.returncode == 3


class _Relay:
    """Leads to a daemon, and can cut all that goes through it."""

    def __init__(self, path: str, to: str) -> None:
        self._to = to
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._begin(self._accept)

    def _begin(self, work: Callable[..., None], *of: socket.socket) -> None:
        self._threads.append(threading.Thread(target=work, args=of))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ends = self._listener.accept()[0], socket.socket(socket.AF_UNIX)
                self._ends += ends
                ends[1].connect(self._to)
                self._begin(_copy, *ends)
                self._begin(_copy, *reversed(ends))

    def cut(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()


def _copy(from_: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := from_.recv(1 << 16):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)


def test_logs_that_are_followed_go_on_where_the_connection_breaks(
    daemon: Daemon, tmp_path: Path
) -> None:
    box = daemon.sandbox()
    process = _begun(daemon, box, "echo one; until [ -e go ]; do sleep .05; done; echo two")
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
    with (
        contextlib.closing(_Relay(f"{tmp_path}/relay", daemon.socket)) as relay,
        subprocess.Popen(
            [sys.executable, "-m", "agentd", "logs", "-f", box, process],
            env=env | {"AGENTD_URL": f"unix:{tmp_path}/relay"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as following,
    ):
        assert following.stdout is not None
        assert following.stdout.readline() == b"one\n"
        relay.cut()
        _file(daemon, box, "go")
        assert following.stdout.read() == b"two\n"
    assert following.returncode == 0


def test_what_a_function_for_output_fails_with_is_its_own(daemon: Daemon) -> None:
    def emit(kind: str, data: bytes) -> None:
        raise ConnectionResetError("of somebody else's")

    with Sandbox.create(url=daemon.url) as sandbox:
        with pytest.raises(ConnectionResetError, match="somebody else"):
            sandbox.call("shell.exec.v1", command="echo", args=["hi"], emit=emit)
        assert sandbox.run("true").ok


def test_what_writes_a_file_answers_in_json_too(daemon: Daemon, tmp_path: Path) -> None:
    out = tmp_path / "audit.jsonl"
    daemon.sandbox()
    told = json.loads(daemon.cli("audit", "export", "--out", str(out), "--json").stdout)
    assert told == {"out": str(out), "records": len(out.read_bytes().splitlines())}
    key, request, signed = (tmp_path / name for name in ("key.pem", "request", "signed"))
    assert daemon.cli("sign", "--new-key", str(key)).returncode == 0
    request.write_text('{"capability": "fs.list.v1"}')
    words = ["sign", str(request), "--key", str(key), "--out", str(signed), "--json"]
    assert json.loads(daemon.cli(*words).stdout) == {"out": str(signed)}


def test_a_file_of_the_name_dash_is_standard_output(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    daemon.sandbox()
    lines = daemon.cli("audit", "export", "--to", "2", "--out", "-").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [1, 2]
    assert daemon.cli("sign", "--new-key", "key.pem").returncode == 0
    Path("request").write_text('{"capability": "fs.list.v1"}')
    signed = daemon.cli("sign", "request", "--key", "key.pem", "--out", "-").stdout
    assert json.loads(signed)["capability"] == "fs.list.v1"
    assert not Path("-").exists()


def test_a_shell_has_no_json(daemon: Daemon) -> None:
    done = daemon.cli("shell", "--json", daemon.sandbox())
    assert done.returncode == 2 and b"unrecognized arguments: --json" in done.stderr
    assert b"--json" not in daemon.cli("shell", "--help").stdout


def test_no_records_and_then_those_that_come(daemon: Daemon) -> None:
    daemon.sandbox()
    head = int(daemon.ask("GET", "/v1/audit/head").json["head"].partition(":")[0])
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
    with subprocess.Popen(
        [sys.executable, "-m", "agentd", "audit", "tail", "-n", "0", "-f", "--json"],
        env=env | {"AGENTD_URL": daemon.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as tail:
        assert tail.stdout is not None
        try:
            stopped = threading.Event()
            more = threading.Thread(target=_more, args=(daemon, stopped))
            more.start()
            first = json.loads(tail.stdout.readline())
            stopped.set()
            more.join()
        finally:
            tail.kill()
    assert first["seq"] > head


def _more(daemon: Daemon, stopped: threading.Event) -> None:
    while not stopped.wait(0.2):
        daemon.sandbox()


def test_a_file_of_the_callers_that_cannot_be_read_is_wrong_words(daemon: Daemon) -> None:
    done = daemon.cli("cp", "/proc/self/mem", f"{daemon.sandbox()}:/workspace/mem")
    assert done.returncode == 2 and b"/proc/self/mem cannot be read: Input/output" in done.stderr


def test_what_a_copy_leaves_out_and_what_is_put_in_is_told_in_json(
    daemon: Daemon, tmp_path: Path
) -> None:
    folder, tape = tmp_path / "folder", tmp_path / "tape.jsonl"
    folder.mkdir()
    (folder / "file").write_text("12345")
    with socket.socket(socket.AF_UNIX) as left_out:
        left_out.bind(f"{folder}/socket")
    told = daemon.cli("cp", str(folder), f"{daemon.sandbox()}:/workspace/", "--json").stdout
    assert json.loads(told) == {"bytes": 5, "skipped": "1 socket, as folder/socket"}
    recorded, replays = daemon.sandbox(net=["record"]), daemon.sandbox(net=["replay"])
    tape.write_bytes(daemon.cli("net", "cassette", recorded).stdout)
    put = daemon.cli("net", "cassette", replays, "--put", str(tape), "--json")
    assert json.loads(put.stdout) == {"sandbox": replays, "put": str(tape)}, put.stderr
