"""One thing has three names: an option, a keyword, a key of JSON. Each door says its own."""

import asyncio
import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.test_client_of_a_daemon import Daemon

from agentd import AsyncSandbox, Sandbox
from agentd.model.errors import AgentdError
from agentd.model.words import in_json, in_options

_JSON = {"Content-Type": "application/json"}
_EVENTS = {"Accept": "text/event-stream"}
_SLEEP = {"cmd": ["sleep", "60"], "timeout": "100ms"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("words"))
    made.start()
    yield made
    made.stop()


def raw(daemon: Daemon, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """As any program would ask: the answer as it goes over the wire."""
    link = http.client.HTTPConnection("localhost", timeout=60)
    link.sock = socket.socket(socket.AF_UNIX)
    link.sock.connect(daemon.url.removeprefix("unix:"))
    with contextlib.closing(link):
        data = None if body is None else json.dumps(body)
        link.request(method, path, data, _EVENTS if data is None else _JSON)
        response = link.getresponse()
        return response.status, response.read().decode()


def asked(daemon: Daemon, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    status, text = raw(daemon, method, path, body)
    return status, json.loads(text or "null")


def test_rest_says_the_keys_of_json(daemon: Daemon) -> None:
    weak = {"backend": "linux", "isolation": "microvm"}
    status, error = asked(daemon, "POST", "/v1/sandboxes", weak)
    assert status >= 400
    wanted = 'drop "backend": "linux", or ask for "isolation": "namespace" where'
    assert error["remediation"].startswith(wanted)
    _, made = asked(daemon, "POST", "/v1/sandboxes", {})
    box = f"/v1/sandboxes/{made['id']}"
    causes = [asked(daemon, "POST", "/v1/run", {"exec": _SLEEP})[1]["cause"]]
    causes += [asked(daemon, "POST", f"{box}/exec", _SLEEP)[1]["cause"]]
    process = asked(daemon, "POST", f"{box}/exec", _SLEEP | {"wait": False})[1]["id"]
    text = raw(daemon, "GET", f"{box}/processes/{process}/output?follow=true")[1]
    _, _, last = text.partition("event: exit\ndata: ")
    causes += [json.loads(last.splitlines()[0])["cause"]]
    causes += [asked(daemon, "GET", f"{box}/processes/{process}")[1]["result"]["cause"]]
    found = asked(daemon, "GET", f"{box}/processes")[1]
    causes += [each["result"]["cause"] for each in found]
    assert len(causes) >= 5
    for cause in causes:
        assert isinstance(cause, dict), causes
        assert cause["remediation"].startswith('raise "timeout", or make the command'), cause
    call = {"capability": "shell.exec.v1", "sandbox": made["id"]}
    parameters = {"command": "sleep", "args": ["60"], "timeout_ms": 100}
    answer = asked(daemon, "POST", "/v1/call", call | {"parameters": parameters})[1]
    assert answer["value"]["cause"]["remediation"].startswith("raise timeout_ms, or")
    assert answer["cause"]["remediation"].startswith("raise timeout_ms, or")
    asked(daemon, "DELETE", box)


def test_the_sdk_says_its_keywords_by_a_daemon_too(daemon: Daemon) -> None:
    with pytest.raises(AgentdError) as caught:
        Sandbox.create(url=daemon.url, backend="linux", isolation="microvm")
    wanted = 'drop backend="linux", or ask for isolation="namespace" where'
    assert caught.value.remediation.startswith(wanted)
    with Sandbox.create(url=daemon.url) as made:
        for result in (
            made.run("sleep 60", timeout="100ms"),
            made.start("sleep 60", timeout="100ms").wait(),
        ):
            assert result.cause.remediation.startswith("raise timeout=, or make")

    async def run() -> str:
        async with await AsyncSandbox.create(url=daemon.url) as other:
            return (await other.run("sleep 60", timeout="100ms")).cause.remediation

    assert asyncio.run(run()).startswith("raise timeout=, or make")


def test_the_command_line_says_its_options_by_a_daemon_too(daemon: Daemon) -> None:
    done = daemon.cli("create", "--backend", "linux", "--isolation", "microvm")
    assert b"drop --backend linux, or ask for --isolation namespace where" in done.stderr, (
        done.stderr
    )
    done = daemon.cli("run", "--timeout", "100ms", "--", "sleep", "60")
    assert done.returncode == 124 and b"raise --timeout, or make" in done.stderr
    done = daemon.cli("run", "--json", "--timeout", "100ms", "--", "sleep", "60")
    assert json.loads(done.stdout)["cause"]["remediation"].startswith("raise --timeout")


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("raise --memory, or --open-files", 'raise "memory", or "open_files"'),
        ("drop --backend linux, or --mount", 'drop "backend": "linux", or "mounts"'),
        ("it is (--user)", 'it is ("user")'),
        ("leave --memory out (systemd-run --user --scope -p Delegate=yes)",
         'leave "memory" out (systemd-run --user --scope -p Delegate=yes)'),
        ("be bounded (docker run --memory, --cpus)", "be bounded (docker run --memory, --cpus)"),
        ("agentd run --isolation process -w .", "agentd run --isolation process -w ."),
        ("--nothing of ours, 'memory'", "--nothing of ours, 'memory'"),
    ],
)  # fmt: skip
def test_there_and_back(option: str, key: str) -> None:
    assert in_json(option) == key
    assert in_options(key) == option


@pytest.mark.root
def test_a_call_by_the_sdk_says_its_keywords_too(daemon: Daemon) -> None:
    hog = {"command": "python3", "args": ["-c", "bytearray(300 << 20)"]}
    for where in ({"url": daemon.url}, {"embedded": True}):
        with Sandbox.create(memory="64M", **where) as made:  # type: ignore[arg-type]
            view = made.call("shell.exec.v1", hog)
            for told in (view.cause.remediation, view.value["cause"]["remediation"]):
                assert told == "raise memory=, or make the command use less", where
