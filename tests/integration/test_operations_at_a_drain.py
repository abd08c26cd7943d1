"""Whatever a daemon's shutdown, or its own client, cuts off says truthfully why it ended."""

import contextlib
import http.client
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_operations_at_a_sandboxes_end import (
    POLICY,
    downloads,
    in_flight,
    served,
    told_of,
)
from tests.security.daemons import Daemon, Later, running, until

from agentd import Client

SLEEP = ["sleep", "600"]
SHELL = {"command": "sleep", "args": ["600"]}
POSTED = """
import socket, threading
server, kept = socket.create_server(("127.0.0.1", 8124)), []
def serve(one):
    kept.append(one)
    got = b""
    while not got.endswith(b"ab") and (data := one.recv(4096)):
        got += data
    if got.endswith(b"ab"):
        one.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
print("listens", flush=True)
while True:
    threading.Thread(target=serve, args=server.accept()[:1]).start()
"""
WAITS = """
import time
from agentd.model.capability import About, Needs
class Waits:
    about = About(
        "test.wait.v1",
        "wait",
        {"type": "object", "properties": {}, "additionalProperties": False},
        needs=Needs(sandbox=False),
    )
    def run(self, call, inside):
        time.sleep(600)
CAPABILITY = Waits()
"""
PYTHON = {"code": "import time; time.sleep(600)"}


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running(policy=POLICY) as made:
        yield made


def asking(box: str) -> dict[str, tuple[str, dict[str, Any]]]:
    shell = {"capability": "shell.exec.v1", "sandbox": box, "parameters": SHELL}
    python = {"capability": "python.exec.v1", "sandbox": box, "parameters": PYTHON}
    return {
        "exec": (f"/v1/sandboxes/{box}/exec", {"cmd": SLEEP}),
        "call": ("/v1/call", shell),
        "followed": ("/v1/call/stream", shell),
        "python": ("/v1/call", python),
    }


def starts(daemon: Daemon, box: str) -> int:
    return len(daemon.records(kind="start", sandbox=box))


def causes(daemon: Daemon, box: str) -> list[tuple[str, str, bool]]:
    """Of each that was cut off: not of what ``served`` ran before."""
    ends = daemon.records(kind="end", sandbox=box)
    found = [(r.capability, r.fields["cause"]) for r in ends]
    return sorted(
        (name, cause["code"], cause["infrastructure"])
        for name, cause in found
        if cause["code"] != "exited" or cause["message"] == "done"
    )


def test_what_a_shutdown_cuts_off_is_told_so(daemon: Daemon) -> None:
    box, going = daemon.sandbox(), threading.Event()
    served(daemon, box)
    before = starts(daemon, box)
    ghost = f"/v1/sandboxes/{box}/exec", {"cmd": ["echo", "ghost"]}
    with Client(daemon.url) as client, downloads(daemon, box) as down:
        sent = {
            name: Later(lambda path=path, body=body: daemon.ask("POST", path, body))  # type: ignore[misc]
            for name, (path, body) in {**asking(box), "approval": ghost}.items()
        }
        works = {
            name: Later(lambda work=work: told_of(work))  # type: ignore[misc]
            for name, work in in_flight(client, box, going).items()
        }
        try:
            until(lambda: starts(daemon, box) == before + len(asking(box)) + len(works) + 2)
            daemon.until_recorded(kind="approval_asked", sandbox=box)
            daemon.stop()
            answers = {name: one.answer() for name, one in sent.items()}
            told = {name: one.answer() for name, one in works.items()}
            for response in down:
                with pytest.raises(http.client.IncompleteRead):
                    response.read()
        finally:
            going.set()
    for name in ("exec", "call"):
        cause = answers[name].json["cause"]
        assert (cause["code"], cause["infrastructure"]) == ("interrupted", True), name
    assert b'"code":"interrupted"' in answers["followed"].body
    assert (answers["python"].status, answers["python"].code) == (503, "interrupted")
    assert (answers["approval"].status, answers["approval"].code) == (429, "full")
    (denial,) = daemon.records(kind="denial", sandbox=box)
    assert denial.fields["approval"] == "full"
    assert told["watch"] == ("draining", True, True)
    assert all(told[name][1] for name in works), told
    found = causes(daemon, box)
    wanted = dict.fromkeys(("fs.list.v1", "sandbox.port.v1", "python.exec.v1"), 1)
    wanted |= {"fs.read.v1": 2, "fs.write.v1": 2, "shell.exec.v1": 3}
    each = [(name, "interrupted", True) for name, count in wanted.items() for _ in range(count)]
    assert found == sorted(each)


def test_what_its_client_leaves_is_cancelled(daemon: Daemon) -> None:
    box = daemon.sandbox()
    at = f"/v1/sandboxes/{box}/files"
    headers = {"Content-Type": "application/json"}
    asked = [("POST", path, json.dumps(body)) for path, body in asking(box).values()]
    asked.append(("GET", f"{at}/watch?path=/workspace", ""))
    with contextlib.ExitStack() as stack:
        for method, path, text in asked:
            one = stack.enter_context(contextlib.closing(daemon.connect()))
            one.request(method, path, text or None, headers)
        for path in (f"{at}?path=/workspace/up", f"{at}/tar?path=/workspace"):
            one = stack.enter_context(contextlib.closing(daemon.connect()))
            one.putrequest("PUT", path)
            one.putheader("Content-Length", "1000000")
            one.endheaders(bytes(1000))
        count = len(asked) + 2
        until(lambda: starts(daemon, box) == count)
    until(lambda: len(daemon.records(kind="end", sandbox=box)) == count)
    found = causes(daemon, box)
    assert len(found) == count and {each[1:] for each in found} == {("cancelled", False)}, found


@contextlib.contextmanager
def patient() -> Iterator[Daemon]:
    """One that waits long for what it could end."""
    with running() as daemon:
        daemon.stop()
        settings = daemon.folder / "agentd.toml"
        settings.write_text(settings.read_text().replace('drain = "2s"', 'drain = "100s"'))
        daemon.start()
        yield daemon


def test_a_followed_call_has_the_time_of_a_shutdown() -> None:
    with patient() as daemon:
        box = daemon.sandbox()
        words = "echo begun; sleep 2; echo done"
        body = {
            "capability": "shell.exec.v1",
            "sandbox": box,
            "parameters": {"command": "sh", "args": ["-c", words]},
        }
        headers = {"Content-Type": "application/json"}
        with contextlib.closing(daemon.connect()) as one:
            one.request("POST", "/v1/call/stream", json.dumps(body), headers)
            answer = one.getresponse()
            assert answer.readline() == b"event: stdout\n"
            daemon.stop()
            rest = answer.read()
    assert b'"status":"ok"' in rest and b'"stdout":"begun\\ndone\\n"' in rest, rest


def test_what_ends_during_a_shutdown_by_itself_is_not_cut_off() -> None:
    with patient() as daemon, contextlib.ExitStack() as leaving:
        box = daemon.sandbox()
        served(daemon, box, POSTED)
        before, drains = starts(daemon, box), daemon.log.count(b"draining")
        answered, left = (leaving.enter_context(contextlib.closing(daemon.connect())) for _ in "12")
        leaving.enter_context(downloads(daemon, box))
        for one in (answered, left):
            one.putrequest("POST", f"/v1/sandboxes/{box}/ports/8124/")
            one.putheader("Content-Length", "2")
            one.endheaders(b"a")
        until(lambda: starts(daemon, box) == before + 4)
        stopped = Later(daemon.stop)
        until(lambda: daemon.log.count(b"draining") > drains)
        answered.send(b"b")
        assert answered.getresponse().read() == b"ok"
        leaving.close()
        assert stopped.answer() == 0
        ends = daemon.records(kind="end", sandbox=box)
        found = {(r.capability, r.fields["cause"]["code"]) for r in ends[-4:]}
    assert found == {("sandbox.port.v1", "exited"), ("fs.read.v1", "cancelled")}


def test_a_followed_call_that_its_client_does_not_read_is_cut_off(daemon: Daemon) -> None:
    box = daemon.sandbox()
    parameters = {"command": "sh", "args": ["-c", "yes; exit 1"]}
    body = {"capability": "shell.exec.v1", "sandbox": box, "parameters": parameters}
    with contextlib.closing(daemon.connect()) as one:
        headers = {"Content-Type": "application/json"}
        one.request("POST", "/v1/call/stream", json.dumps(body), headers)
        with one.getresponse() as answer:
            assert answer.readline() == b"event: stdout\n"
            assert daemon.stop() == 0
    (end,) = daemon.records(kind="end", sandbox=box)
    cause = end.fields["cause"]
    assert (cause["code"], cause["infrastructure"]) == ("interrupted", True)


def test_what_goes_on_in_the_daemon_itself_is_told_of_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of http.fetch.v1 does."""
    (tmp_path / "agentd_waits.py").write_text(WAITS)
    info = tmp_path / "agentd_waits-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: agentd-waits\nVersion: 1.0\n")
    point = "[agentd.capabilities]\ntest.wait.v1 = agentd_waits:CAPABILITY\n"
    (info / "entry_points.txt").write_text(point)
    before = [path] if (path := os.environ.get("PYTHONPATH")) else []
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *before]))
    with running() as daemon:
        later = Later(lambda: daemon.call("test.wait.v1"))
        daemon.until_recorded(kind="start", capability="test.wait.v1")
        assert daemon.stop() == 0
        answer = later.answer()
    assert (answer.status, answer.code) == (503, "interrupted"), answer.body
    assert answer.json["remediation"]
