"""Whatever a daemon's shutdown, or its own client, cuts off says truthfully why it ended."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
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


def test_a_followed_call_has_the_time_of_a_shutdown() -> None:
    with running() as daemon:
        box = daemon.sandbox()
        daemon.stop()
        settings = daemon.folder / "agentd.toml"
        settings.write_text(settings.read_text().replace('drain = "2s"', 'drain = "100s"'))
        daemon.start()
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
