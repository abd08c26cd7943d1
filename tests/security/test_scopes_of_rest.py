"""Threat: a request needs another scope than the documentation says, or none.

Control: the service checks the scope before anything else. Each operation is asked with all scopes
but the one that OpenAPI says, which it names as missing, and with that one alone, which is enough.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import Answer, Daemon, running, until

from agentd.model.principal import ADMIN, SCOPES

PAGE = (Path(__file__).resolve().parents[2] / "docs/api.md").read_text()
NAMES = {"id": "sbx-none", "name": "none", "proc": "prc-none", "port": "8000", "path": "x"}
# What each needs to be well-formed; it is for a sandbox that is not there, and so nothing happens.
BODIES: dict[str, object] = {
    "PATCH /v1/sandboxes/{id}": {"labels": {}},
    "POST /v1/sandboxes": {"snapshot": "snp-00"},
    "POST /v1/sandboxes/{id}/renew": {"ttl": 60},
    "POST /v1/sandboxes/{id}/fork": {"count": 1},
    "POST /v1/sandboxes/{id}/commit": {"name": "mine"},
    "POST /v1/sandboxes/{id}/exec": {"cmd": "true"},
    "POST /v1/run": {"exec": {"cmd": "true"}, "sandbox": {"snapshot": "snp-00"}},
    "POST /v1/sandboxes/{id}/processes/{proc}/signal": {"signal": 0},
    "POST /v1/sandboxes/{id}/processes/{proc}/resize": {"rows": 1, "cols": 1},
    "POST /v1/sandboxes/{id}/processes/{proc}/stdin": b"",
    "PUT /v1/sandboxes/{id}/network": {"net": ["pypi"]},
    "POST /v1/sandboxes/{id}/links": {"port": 1},
    "PUT /v1/sandboxes/{id}/files": b"",
    "PUT /v1/sandboxes/{id}/files/tar": b"",
    "POST /v1/sandboxes/{id}/files/mkdir": {"path": "/x"},
    "POST /v1/sandboxes/{id}/files/move": {"path": "/x", "to": "/y"},
    "POST /v1/keys": {"name": "x", "scopes": []},
    "POST /v1/volumes": {"name": "../x"},
    "POST /v1/volumes/{name}/snapshot": {"name": "x"},
    "PUT /v1/secrets/{name}": {"value": "short"},
    "POST /v1/approvals/{id}/decide": {"allow": False},
}
# A good one would make a key, a volume, a secret, or a sandbox.
ILL_FORMED = (
    *("POST /v1/keys", "POST /v1/volumes", "PUT /v1/secrets/{name}"),
    "PUT /v1/sandboxes/{id}",
)
QUERIES = {"path": "/x", "stream": "stdout"}
SOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}
LACKS = re.compile(r" lacks the scope '(\w+)'$")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def operations(daemon: Daemon) -> dict[str, Any]:
    """By method and path, as OpenAPI tells of them, but for WebSockets and ports."""
    paths = daemon.ask("GET", "/openapi.json").json["paths"]
    return {
        f"{method.upper()} {path}": said
        for path, methods in paths.items()
        for method, said in methods.items()
        if "Scope: " in said.get("description", "")
        and not said["operationId"].startswith("ws_")
        and method != "head"  # the answer to GET, without its body
    }


def ask(daemon: Daemon, name: str, said: Any, *scopes: str) -> Answer:
    method, _, path = name.partition(" ")
    required = [one["name"] for one in said.get("parameters", ()) if one["in"] == "query"]
    query = "&".join(f"{one}={QUERIES[one]}" for one in required if one in QUERIES)
    target = re.sub(r"{(\w+)[^}]*}", lambda found: NAMES[found[1]], path) + (query and f"?{query}")
    return daemon.ask(method, target, BODIES.get(name), key=daemon.key("bob", *scopes))


def lacking(answer: Answer) -> str:
    """The scope that it says is missing; "" where it says none."""
    if answer.status != 403:
        return ""
    found = LACKS.search(answer.json["message"])
    assert found is not None and answer.code == "forbidden", answer.body
    return found[1]


def test_each_operation_needs_the_scope_that_is_told_and_no_other(
    daemon: Daemon, operations: dict[str, Any]
) -> None:
    wrong = []
    seen = 0
    for name, said in operations.items():
        (needed,) = re.findall(r"^Scope: (.*?)\.", said["description"])
        if needed in ("none", "the capability's"):
            continue
        seen += 1
        for enough in needed.split(" or "):
            answer = ask(daemon, name, said, *enough.split(" and "))
            if lacking(answer) or (answer.status == 400 and name not in ILL_FORMED):
                wrong.append(f"{name} with {enough}: {answer.status} {answer.body[:200]!r}")
        for scope in needed.split(" and "):
            answer = ask(daemon, name, said, *without(*scope.split(" or ")))
            if lacking(answer) not in scope.split(" or "):
                wrong.append(f"{name} without {scope}: {answer.status} {answer.body[:200]!r}")
    assert wrong == [], "\n".join(wrong)
    assert seen > 40


@pytest.mark.parametrize(
    ("path", "scopes"),
    [
        ("/v1/sandboxes/sbx-none/exec", ("run", "read")),
        ("/v1/sandboxes/sbx-none/processes/prc-none/attach", ("run", "read")),
        ("/v1/sandboxes/sbx-none/ports/8000/", ("ports",)),
    ],
)
def test_a_websocket_needs_its_scopes_before_it_is_open(
    daemon: Daemon, path: str, scopes: tuple[str, ...]
) -> None:
    for scope in scopes:
        refused = daemon.ask("GET", path, key=daemon.key("bob", *without(scope)), **SOCKET)
        assert lacking(refused) == scope, refused
    assert not lacking(daemon.ask("GET", path, key=daemon.key("bob", *scopes), **SOCKET))


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/events", {}),
        ("/v1/events?wait=1s", {}),
        ("/v1/events", {"Accept": "text/event-stream"}),
        ("/metrics", {}),
        ("/v1/sandboxes/sbx-none/exec", SOCKET),
        ("/v1/sandboxes/sbx-none/processes/prc-none/attach", SOCKET),
        ("/v1/sandboxes/sbx-none/tunnels/80", SOCKET),
        ("/v1/sandboxes/sbx-none/ports/80/", SOCKET),
        ("/v1/sandboxes/sbx-none/ports/80/", {}),
        ("/v1/sandboxes/sbx-none/files/tar?path=/", {}),
    ],
)
def test_what_a_door_checks_itself_is_written_down_as_well(
    daemon: Daemon, path: str, headers: dict[str, str]
) -> None:
    before = len(daemon.records(kind="denial", principal="dora"))
    refused = daemon.ask("GET", path, key=daemon.key("dora", "approve"), **headers)
    assert lacking(refused), refused
    until(lambda: len(daemon.records(kind="denial", principal="dora")) == before + 1)
    record = daemon.records(kind="denial", principal="dora")[-1]
    assert record.request == refused.headers.get("x-request-id", record.request)
    assert "lacks the scope" in str(record.fields)


def without(*scopes: str) -> list[str]:
    return [one for one in SCOPES if one not in (*scopes, ADMIN)]


def test_a_call_is_told_to_need_the_scope_of_its_capability(
    daemon: Daemon, operations: dict[str, Any]
) -> None:
    for path in ("/v1/call", "/v1/call/stream"):
        assert operations[f"POST {path}"]["description"].startswith("Scope: the capability's.")


def test_the_page_has_the_same_scopes(operations: dict[str, Any]) -> None:
    told: dict[str, str] = {}
    for paths, scope in re.findall(r"^\| ([^|]*`[^|]*) \| ([^|]+) \|", PAGE, re.M):
        method = "any"
        for begun, path in re.findall(r"`([A-Z]+ )?(\S+)`", paths):
            method = begun.strip() or method
            told |= dict.fromkeys(meant(method, path, operations), re.split("[;,]", scope)[0])
    said = {
        name: re.findall(r"^Scope: (.*?)\.", said["description"])[0]
        for name, said in operations.items()
    }
    assert {name: re.sub(r"\[(.*)\]\(.*\)", r"\1", scope) for name, scope in told.items()} == said


def meant(method: str, path: str, operations: dict[str, Any]) -> list[str]:
    """The operations of a row of the page, where ``...`` and a last part stand for the whole."""
    ends = path.removeprefix("...")
    return [
        name
        for name in operations
        if name.partition(" ")[0] == method or method == "any"
        if (name.endswith(f" {path}") if path.startswith("/v1") else name.endswith(ends))
    ]
