"""What a request asks for is done, or refused by name: nothing is left out without a word."""

from typing import Any

import pytest
from tests.security.daemons import Daemon, fixture

from agentd import InvalidInput, Sandbox
from agentd.client import embedded
from agentd.client.embedded_service import EmbeddedService
from agentd.model.api import ExecBody, RunBody

daemon = fixture()
_HELLO = {"capability": "shell.exec.v1", "parameters": {"command": "echo", "args": ["hi"]}}
_NEVER = {"capability": "shell.exec.v1", "parameters": {"command": "sleep", "args": ["1000"]}}


def test_a_command_that_is_waited_for_has_no_open_input(daemon: Daemon) -> None:
    exec_ = f"/v1/sandboxes/{daemon.sandbox()}/exec"
    for body in ({"stdin_open": True}, {"stdin_open": True, "stdin": "x"}):
        told = daemon.ask("POST", exec_, {"cmd": "cat", **body})
        assert (told.status, told.code) == (400, "invalid_input") and b"stdin_open" in told.body
        run = daemon.ask("POST", "/v1/run", {"exec": {"cmd": "cat", **body}})
        assert (run.status, run.code) == (400, "invalid_input") and b"stdin_open" in run.body
    whole = daemon.ask("POST", exec_, {"cmd": "cat", "stdin": "x"})
    assert whole.json["stdout"] == "x"


def test_a_run_is_waited_for(daemon: Daemon) -> None:
    before = daemon.ask("GET", "/v1/sandboxes").body
    told = daemon.ask("POST", "/v1/run", {"exec": {"cmd": "sleep 1000", "wait": False}})
    assert (told.status, told.code) == (400, "invalid_input") and b"wait" in told.body
    assert daemon.ask("GET", "/v1/sandboxes").body == before


def test_without_a_daemon_it_is_the_same() -> None:
    pipeline = embedded.new()
    service: Any = EmbeddedService(pipeline)
    try:
        for body in (ExecBody(cmd="cat", stdin_open=True), ExecBody(cmd="cat", wait=False)):
            with pytest.raises(InvalidInput, match=r"stdin_open|wait"):
                service.commands.run(RunBody(exec=body))
        said = service.commands.run(RunBody(exec=ExecBody(cmd="cat", stdin="x")))
        assert said.stdout == "x"
        assert pipeline.manager.sandboxes() == ()
    finally:
        pipeline.manager.close()


def test_the_sandbox_of_a_call_has_the_lease_that_is_asked_for(daemon: Daemon) -> None:
    done = daemon.ask("POST", "/v1/call", {**_HELLO, "create": {"ttl": "10m"}})
    assert done.status == 200 and done.json["status"] == "ok", done.body
    for ttl in ("never", "1000d"):
        told = daemon.ask("POST", "/v1/call", {**_HELLO, "create": {"ttl": ttl}})
        assert (told.status, told.code) == (400, "invalid_input"), told.body
    ended = daemon.ask("POST", "/v1/call", {**_NEVER, "create": {"ttl": "1s"}})
    assert b"lease" in ended.body, ended.body
    assert daemon.until_recorded(kind="sandbox_ended").fields["reason"] == "lease_expired"


def test_a_sandbox_of_this_process_has_no_lease() -> None:
    with pytest.raises(InvalidInput, match="ttl is for the sandboxes of a daemon"):
        Sandbox.create(embedded=True, ttl="10m")
