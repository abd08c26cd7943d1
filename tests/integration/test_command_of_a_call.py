"""The command of a call is a command as any other: listed, followed, signalled while it runs."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from tests.security.daemons import WAIT, Daemon, Later, fixture, running, until

from agentd import Client, Refused, Sandbox

daemon = fixture()


@pytest.fixture(scope="module")
def box(daemon: Daemon) -> str:
    return daemon.sandbox()


@contextlib.contextmanager
def calling(daemon: Daemon, box: str, capability: str, parameters: object) -> Iterator[str]:
    """Yields the id of the command that it has begun; the call is over behind the block."""
    listed = f"/v1/sandboxes/{box}/processes"
    asked = Later(lambda: daemon.call(capability, parameters, sandbox=box))
    until(lambda: bool(daemon.ask("GET", listed).json))
    (process,) = daemon.ask("GET", listed).json
    assert process["state"] == "running" and process["sandbox"] == box
    yield process["id"]
    assert asked.answer().status == 200, asked.answer().body
    assert daemon.ask("GET", listed).json == []


def test_it_is_listed_followed_and_signalled(daemon: Daemon, box: str) -> None:
    parameters = {"command": "sh", "args": ["-c", "echo out; sleep 600"]}
    with calling(daemon, box, "shell.exec.v1", parameters) as process:
        at = f"/v1/sandboxes/{box}/processes/{process}"
        until(lambda: daemon.ask("GET", at).json.get("output", {}).get("stdout") == 4)
        followed = _following(daemon, box, process)
        assert followed.stdout is not None and followed.stdout.readline() == b"out\n"
        other = daemon.key("eve")
        assert daemon.ask("GET", at, key=other).status == 404
        assert daemon.ask("POST", f"{at}/signal", {"signal": 9}).status == 204
    assert followed.stdout.read() == b""  # it has seen the end
    followed.stdout.close()
    followed.wait(WAIT)


def test_it_is_attached_to_and_goes_on_when_that_is_left(daemon: Daemon, box: str) -> None:
    script = "trap 'echo last; exit 0' TERM; echo out; while :; do sleep 0.05; done"
    parameters = {"command": "sh", "args": ["-c", script]}
    with calling(daemon, box, "shell.exec.v1", parameters) as process:
        sandbox = Sandbox.connect(box, url=daemon.url)
        left = sandbox.attach(process)
        assert next(iter(left)).data == b"out\n"
        cursors = left.cursors
        left.detach()
        again = sandbox.attach(process, cursors)
        again.signal(15)
        said = [chunk.data for chunk in again if chunk.stream == "stdout"]
        assert b"".join(said) == b"last\n"
        ended = again.wait()
        assert (ended.exit_code, ended.signal) == (0, None)


def _following(daemon: Daemon, box: str, process: str) -> "subprocess.Popen[bytes]":
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
    return subprocess.Popen(
        [sys.executable, "-m", "agentd", "logs", "-f", box, process],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=env | {"AGENTD_URL": daemon.url},
    )


def test_many_calls_leave_no_commands_behind(daemon: Daemon, box: str) -> None:
    def call() -> None:
        for _ in range(5):
            done = daemon.call("shell.exec.v1", {"command": "echo", "args": ["x"]}, sandbox=box)
            assert done.json["value"]["stdout"] == "x\n", done.body

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert daemon.ask("GET", f"/v1/sandboxes/{box}/processes").json == []
    assert daemon.ask("GET", "/v1/stats").json["processes"] == 0


HELLO = {"command": "sh", "args": ["-c", "echo out; echo err >&2; exit 3"]}


@pytest.fixture
def mortal() -> Iterator[Daemon]:
    """One that is killed and started again."""
    with running() as made:
        yield made


def test_one_that_is_kept_is_looked_at_after_its_call_and_after_the_daemon(mortal: Daemon) -> None:
    daemon = mortal
    box = daemon.sandbox()
    with Sandbox.connect(box, url=daemon.url) as sandbox, Client(daemon.url) as client:
        done = sandbox.call("shell.exec.v1", HELLO, keep=True)
        assert sandbox.call("shell.exec.v1", HELLO).commands == ()
        (kept,) = done.commands
        for _ in range(2):
            (listed,) = client.commands.list(box)
            assert (listed.id, listed.state) == (kept, "ended")
            assert listed.result is not None and listed.result.exit_code == 3
            assert listed.result.request_id == done.request_id
            assert client.commands.output(box, kept) == b"out\n"
            said = {chunk.stream: chunk.data for chunk in sandbox.attach(kept)}
            assert said == {"stdout": b"out\n", "stderr": b"err\n"}
            assert daemon.cli("logs", box, kept).stdout == b"out\n"
            daemon.stop(kill=True)
            daemon.start()
    assert daemon.ask("DELETE", f"/v1/sandboxes/{box}").status == 204


def test_one_that_is_kept_and_whose_daemon_is_killed_is_listed_as_interrupted(
    mortal: Daemon,
) -> None:
    daemon = mortal
    box = daemon.sandbox()
    asked = {"command": "sh", "args": ["-c", "echo out; exec sleep 600"]}
    body = {"capability": "shell.exec.v1", "parameters": asked, "sandbox": box, "keep": True}

    def call() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            daemon.ask("POST", "/v1/call", body)

    calling = threading.Thread(target=call)
    calling.start()
    at = f"/v1/sandboxes/{box}/processes"
    until(lambda: [p["output"] for p in daemon.ask("GET", at).json] == [{"stdout": 4}])
    daemon.stop(kill=True)
    calling.join()
    daemon.start()
    until(lambda: [p["state"] for p in daemon.ask("GET", at).json] == ["ended"])
    (listed,) = daemon.ask("GET", at).json
    assert listed["result"]["cause"]["code"] == "interrupted"
    assert daemon.ask("DELETE", f"/v1/sandboxes/{box}").status == 204


def test_what_cannot_be_kept_is_refused(daemon: Daemon) -> None:
    asked = {"capability": "shell.exec.v1", "parameters": HELLO, "keep": True}
    refused = daemon.ask("POST", "/v1/call", asked)
    assert refused.status == 400 and "name the sandbox" in refused.json["remediation"]
    with Sandbox.create(embedded=True) as here, pytest.raises(Refused, match="a daemon is needed"):
        here.call("shell.exec.v1", HELLO, keep=True)


def test_by_the_command_line(daemon: Daemon, box: str) -> None:
    words = ("--sandbox", box, "--keep", "--params", json.dumps(HELLO), "--json")
    done = daemon.cli("call", "shell.exec.v1", *words)
    (kept,) = json.loads(done.stdout)["commands"]
    assert daemon.cli("logs", box, kept).stdout == b"out\n"
