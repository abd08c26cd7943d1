"""Whatever a daemon is killed amid has one start, one end and one cause, whichever door asked."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, running, until

from agentd.model.audit import Record


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


@contextlib.contextmanager
def connected(daemon: Daemon, head: str, body: bytes = b"", *, length: int = 0) -> Iterator[bytes]:
    """A request that is not over; yields the first bytes of its answer where it has no body."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(120)
        client.connect(daemon.socket)
        sized = f"Content-Length: {length}\r\n" if length else ""
        client.sendall(f"{head} HTTP/1.1\r\nHost: localhost\r\n{sized}\r\n".encode() + body)
        yield b"" if length else client.recv(64)


def records(daemon: Daemon, box: str, kind: str, capability: str) -> list[Record]:
    return daemon.records(kind=kind, sandbox=box, capability=capability)


def cause_of(record: Record) -> str:
    code: str = record.fields["cause"]["code"]
    return code


def kill(daemon: Daemon) -> None:
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGKILL)
    daemon.stop(kill=True)


def listening(daemon: Daemon, box: str) -> int:
    port = 8123
    code = f"import socket,time\ns=socket.create_server(('127.0.0.1',{port}))\n"
    code += "print('listens', flush=True)\ntime.sleep(600)"
    at, cmd = f"/v1/sandboxes/{box}", ["python3", "-c", code]
    process = daemon.ask("POST", f"{at}/exec", {"cmd": cmd, "wait": False}).json["id"]
    while daemon.ask("GET", f"{at}/processes/{process}/output?stream=stdout").body != b"listens\n":
        time.sleep(0.05)
    return port


def test_a_killed_daemons_operations_end_once_in_the_next(daemon: Daemon) -> None:
    box = daemon.sandbox()
    port = listening(daemon, box)
    at = f"/v1/sandboxes/{box}"
    terminal = daemon.ask("POST", f"{at}/exec", {"cmd": "cat", "wait": False, "pty": {}}).json["id"]

    def wait_for_it() -> None:
        with contextlib.suppress(Exception):  # its answer never comes
            daemon.ask("POST", f"{at}/exec", {"cmd": "sleep 600"})

    waiting = threading.Thread(target=wait_for_it)
    with contextlib.ExitStack() as going:
        waiting.start()
        put = f"PUT {at}/files?path=/workspace/half"
        going.enter_context(connected(daemon, put, b"half", length=8))
        watch = f"GET {at}/files/watch?path=/workspace"
        assert b" 200 " in going.enter_context(connected(daemon, watch))
        head = f"GET {at}/ports/{port}/"
        going.enter_context(connected(daemon, head, length=1))
        began = {
            "fs.write.v1": 1, "fs.list.v1": 1, "sandbox.port.v1": 1, "shell.exec.v1": 3,
        }  # fmt: skip
        for capability, count in began.items():
            until(lambda c=capability, n=count: len(records(daemon, box, "start", c)) == n)  # type: ignore[misc]
        kill(daemon)
    waiting.join()
    for _ in range(2):
        daemon.start()
        assert daemon.is_up, daemon.log.decode()
        for capability, count in began.items():
            started = [r.request for r in records(daemon, box, "start", capability)]
            assert len(set(started)) == len(started) == count, capability
            (end,) = records(daemon, box, "end", capability)
            assert end.request in started and cause_of(end) == "interrupted", capability
        kill(daemon)
    daemon.start()
    # What lives on ends when it ends.
    signalled = daemon.ask("POST", f"{at}/processes/{terminal}/signal", {"signal": 9})
    assert signalled.status == 204, signalled.body
    until(lambda: len(records(daemon, box, "end", "shell.exec.v1")) == 2)
    ends = Counter(cause_of(end) for end in records(daemon, box, "end", "shell.exec.v1"))
    assert ends == {"interrupted": 1, "signalled": 1}
    assert daemon.cli("audit", "verify", "--dir", daemon.audit).returncode == 0


def test_a_sandbox_that_ends_while_no_daemon_is_there_has_its_end_in_the_log(
    daemon: Daemon,
) -> None:
    lost, ended = daemon.sandbox(), daemon.sandbox()
    assert daemon.ask("DELETE", f"/v1/sandboxes/{ended}").status == 204
    daemon.until_recorded(kind="sandbox_ended", sandbox=ended)
    leased = daemon.sandbox(ttl="1s")
    deadline = time.time() + 1
    kill(daemon)
    daemon.end_supervisor()
    until(lambda: time.time() > deadline)
    for _ in range(2):
        daemon.start()
        assert daemon.is_up, daemon.log.decode()
        ends = [(r.sandbox, r.fields["reason"]) for r in daemon.records(kind="sandbox_ended")]
        wanted = [(ended, "destroyed"), (leased, "lease_expired"), (lost, "backend_lost")]
        assert sorted(ends) == sorted(wanted)
        kill(daemon)


def test_one_whose_end_was_written_as_its_daemon_was_killed_has_no_other(daemon: Daemon) -> None:
    box = daemon.sandbox()
    assert daemon.ask("DELETE", f"/v1/sandboxes/{box}").status == 204
    daemon.until_recorded(kind="sandbox_ended", sandbox=box)
    kill(daemon)
    with contextlib.closing(sqlite3.connect(daemon.state / "store.db")) as store, store:
        store.execute("UPDATE sandboxes SET state = 'ready' WHERE id = ?", (box,))
    daemon.start()
    assert daemon.is_up, daemon.log.decode()
    assert len(daemon.records(kind="sandbox_ended", sandbox=box)) == 1


# Of a daemon that is killed as it is about to write down what it has found.
KILLED = """
import os, signal, sys

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if "serve" in sys.orig_argv:
    from agentd.daemon.admission.control import AdmissionControl
    AdmissionControl.note = die
"""


def test_nor_is_an_end_lost_where_the_next_daemon_is_killed_as_it_writes_that(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = daemon.sandbox()
    kill(daemon)
    daemon.end_supervisor()
    (tmp_path / "sitecustomize.py").write_text(KILLED)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        daemon.start()
        assert daemon.process is not None
        assert daemon.process.wait(120) == -signal.SIGKILL, daemon.log.decode()
    daemon.stop(kill=True)
    for _ in range(2):
        daemon.start()
        assert daemon.is_up, daemon.log.decode()
        (end,) = daemon.records(kind="sandbox_ended", sandbox=box)
        assert end.fields == {"reason": "backend_lost"}
        kill(daemon)


def test_what_writes_has_a_receipt_and_what_reads_has_none(daemon: Daemon) -> None:
    box = daemon.sandbox()
    file = f"/v1/sandboxes/{box}/files?path=/workspace/a"
    wrote = daemon.ask("PUT", file, b"content")
    assert wrote.status == 200, wrote.body
    id_ = wrote.headers["x-request-id"]
    said = json.loads(daemon.cli("receipt", "show", id_, "--json").stdout)["predicate"]["execution"]
    assert (said["capability"], said["cause"]["code"]) == ("fs.write.v1", "exited")
    assert said["input_digest"] == f"sha256:{sha256(b'content').hexdigest()}"
    assert [r.kind for r in daemon.records(request=id_)] == ["admission", "start", "end"]
    read = daemon.ask("GET", file)
    assert read.body == b"content"
    id_ = read.headers["x-request-id"]
    until(lambda: bool(daemon.records(request=id_, kind="end")))
    of_read = [r.kind for r in daemon.records(request=id_, capability="fs.read.v1")]
    assert of_read == ["admission", "start", "end"]
    assert daemon.ask("GET", f"/v1/receipts/{id_}").status == 404
    kill(daemon)
    daemon.start()
    assert daemon.ask("GET", f"/v1/receipts/{id_}").status == 404  # nor is one made later
    missing = daemon.ask("GET", f"/v1/sandboxes/{box}/files/tar?path=/workspace/none")
    assert missing.status == 404
    end = daemon.until_recorded(request=missing.headers["x-request-id"], kind="end")
    assert cause_of(end) == "failed"
    refused = daemon.ask("PUT", f"/v1/sandboxes/{box}/files?path=/proc/1/none", b"x")
    (end,) = daemon.records(request=refused.headers["x-request-id"], kind="end")
    assert refused.status >= 400 and cause_of(end) == "failed"


def test_a_watch_and_a_tunnel_end_where_their_callers_leave(daemon: Daemon) -> None:
    box = daemon.sandbox()
    port = listening(daemon, box)
    at = f"/v1/sandboxes/{box}"
    with connected(daemon, f"GET {at}/files/watch?path=/workspace") as answer:
        assert b" 200 " in answer
        daemon.until_recorded(kind="start", sandbox=box, capability="fs.list.v1")
        assert records(daemon, box, "end", "fs.list.v1") == []
    with connected(daemon, f"GET {at}/ports/{port}/", length=1):
        daemon.until_recorded(kind="start", sandbox=box, capability="sandbox.port.v1")
        assert records(daemon, box, "end", "sandbox.port.v1") == []
    for capability in ("fs.list.v1", "sandbox.port.v1"):
        daemon.until_recorded(kind="end", sandbox=box, capability=capability)
        assert len(records(daemon, box, "end", capability)) == 1
        assert len(records(daemon, box, "start", capability)) == 1
