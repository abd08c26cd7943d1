"""Threat: one caller, with or without a credential, takes all there is and keeps the others out.

Control: every room has a share for each principal, and looking and ending a room of their own; each
listener has connections of its own, of which those without a credential are the first to go.
"""

from collections.abc import Iterator

import pytest
from tests.security.daemons import Daemon, Later, running, until


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def test_the_sandbox_that_is_full_says_so_and_lives(daemon: Daemon) -> None:
    """Commands, files, watches: whatever is one too many is a 429, and nothing is said to have
    died. What runs can still be signalled, and the lease renewed."""
    box = daemon.sandbox(pids=400)
    path = f"/v1/sandboxes/{box}"
    started, most = [], 64
    for _ in range(most + 1):
        answer = daemon.ask("POST", f"{path}/exec", {"cmd": ["sleep", "300"], "wait": False})
        if answer.status == 201:
            started.append(answer.json["id"])
    assert (answer.status, answer.code) == (429, "full"), answer.body
    assert len(started) == most
    waiting = [
        Later(lambda: daemon.ask("POST", f"{path}/exec", {"cmd": ["sleep", "300"]}))
        for _ in range(120 - most)
    ]
    until(lambda: len(_running(daemon, path)) == 120)
    started = _running(daemon, path)
    asked = {"cmd": "true"}
    call = {"capability": "shell.exec.v1", "parameters": {"command": "true"}, "sandbox": box}
    for method, where, body in (
        ("POST", f"{path}/exec", asked),
        ("POST", "/v1/call", call),
        ("PUT", f"{path}/files?path=/workspace/a", b"a"),
        ("GET", f"{path}/files?path=/etc/passwd", None),
        ("GET", f"{path}/files/list?path=/etc", None),
        ("GET", f"{path}/files/watch?path=/workspace", None),
        ("GET", f"{path}/files/tar?path=/etc", None),
    ):
        refused = daemon.ask(method, where, body)
        assert (refused.status, refused.code) == (429, "full"), (where, refused.body)
        assert "use another sandbox" in refused.json["remediation"]
    assert _running(daemon, path) == started
    assert daemon.ask("POST", f"{path}/renew", {"ttl": "5m"}).status == 200
    kill = f"{path}/processes/{started[0]}/signal"
    assert daemon.ask("POST", kill, {"signal": 9}).status == 204
    end = daemon.ask("GET", f"{path}/processes/{started[0]}/output?follow=true&stream=stdout")
    assert end.status == 200
    assert daemon.ask("POST", f"{path}/exec", asked).json["status"] == "ok"
    assert not [r for r in daemon.records(kind="end") if "backend_lost" in str(r.fields)]
    assert daemon.ask("DELETE", path).status == 204
    for one in waiting:
        one.answer()


def _running(daemon: Daemon, path: str) -> list[str]:
    views = daemon.ask("GET", f"{path}/processes").json
    return [view["id"] for view in views if view["state"] == "running"]
