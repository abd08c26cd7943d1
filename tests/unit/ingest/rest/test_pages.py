"""Lists a page at a time, and what the document says of all this."""

from typing import Any

import pytest
from tests.unit.ingest.harness import Running

from agentd.ingest.rest.app import operations
from agentd.ingest.rest.openapi import document
from agentd.model.api import ApprovalView


def walked(running: Running, path: str, limit: int) -> list[Any]:
    found: list[Any] = []
    cursor = ""
    while True:
        reply = running.ask("GET", f"{path}?limit={limit}&cursor={cursor}")
        assert reply.status == 200 and len(reply.json) <= limit
        found += reply.json
        cursor = reply.headers.get("agentd-next", "")
        if not cursor:
            return found


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_every_list_is_walked_to_its_end(running: Running, limit: int) -> None:
    id_, _ = running.process("echo", "x")
    for _ in range(4):
        running.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": ["echo", "x"], "wait": False})
        running.ask("POST", "/v1/keys", {"name": "k", "scopes": ["read"]})
        running.ask("POST", f"/v1/sandboxes/{id_}/snapshot")
    for path in (f"/v1/sandboxes/{id_}/processes", "/v1/keys", "/v1/snapshots", "/v1/approvals"):
        all_ = running.ask("GET", path)
        assert all_.headers["agentd-next"] is None
        assert walked(running, path, limit) == all_.json
    assert len(walked(running, f"/v1/sandboxes/{id_}/processes", limit)) == 5


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_approvals_are_walked_to_their_end(running: Running, limit: int) -> None:
    for n, state in enumerate(("pending", "approved", "pending", "denied", "expired")):
        view = ApprovalView(f"apr-{n}", state, "bob", "req-1", {"cmd": "rm"}, 1.0, 9.0)
        running.service.asked[view.id] = view
    found = [one["id"] for one in walked(running, "/v1/approvals", limit)]
    assert found == ["apr-0", "apr-2", "apr-1", "apr-3", "apr-4"]  # what waits comes first


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "cursor=x", "cursor=1", "cursor=x:y", "cursor=nan:y", "cursor=inf:y"],
)
def test_what_is_no_page_is_refused(running: Running, query: str) -> None:
    assert running.ask("GET", f"/v1/keys?{query}").code == "invalid_input"


def test_one_key_and_one_snapshot(running: Running) -> None:
    id_ = running.sandbox()
    key = running.ask("POST", "/v1/keys", {"name": "k", "scopes": ["read"]}).json["id"]
    kept = running.ask("POST", f"/v1/sandboxes/{id_}/snapshot").json["id"]
    assert running.ask("GET", f"/v1/keys/{key}").json["id"] == key
    assert running.ask("GET", f"/v1/snapshots/{kept}").json["id"] == kept
    assert running.ask("GET", "/v1/keys/none").status == 404
    assert running.ask("GET", "/v1/snapshots/none").status == 404


def test_a_refused_port_is_the_callers(running: Running) -> None:
    reply = running.ask("GET", f"/v1/sandboxes/{running.sandbox()}/ports/1/")
    assert (reply.status, reply.code) == (409, "operation_failed")


def test_the_document_tells_what_may_be_said() -> None:
    made = document(operations(metrics=True), "1")
    schemas = made["components"]["schemas"]
    assert schemas["SignalBody"]["properties"]["target"]["enum"] == ["group", "sandbox"]
    assert "restricted" in schemas["SandboxView"]["properties"]["net"]["enum"]
    isolation = schemas["SandboxBody"]["properties"]["isolation"]["anyOf"]
    assert "microvm" in isolation[0]["enum"] and "enum" not in isolation[1]
    assert "admin" in schemas["KeyBody"]["properties"]["scopes"]["items"]["enum"]
    assert schemas["Pty"]["properties"]["rows"]["minimum"] == 1
    streams = made["paths"]["/v1/sandboxes/{id}/processes/{proc}/output"]["get"]["parameters"]
    (stream,) = [p for p in streams if p["name"] == "stream"]
    assert {"stdout", "stderr", "pty"} < set(stream["schema"]["enum"])
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            assert operation["tags"], (method, path)
            assert "default" in operation["responses"]
    one = made["paths"]["/v1/sandboxes/{id}"]["get"]["responses"]
    assert {"400", "401", "403", "404", "410", "429", "503"} < set(one)
    assert {"get", "post"} == set(made["paths"]["/v1/sandboxes/{id}/exec"])
    assert "101" in made["paths"]["/v1/sandboxes/{id}/processes/{proc}/attach"]["get"]["responses"]
    assert "put" in made["paths"]["/v1/sandboxes/{id}/ports/{port}/{path}"]


@pytest.mark.parametrize(
    ("query", "message", "fix"),
    [
        ("sandboxes?limit=0", "limit 0 is out of range", "give 1 to 500"),
        ("approvals?limit=0", "limit 0 is out of range", "give 1 to 1000"),
        ("keys?limit=1001", "limit 1001 is out of range", "give 1 to 1000"),
        ("approvals?limit=x", "limit='x' cannot be read", "give a whole number"),
        (
            "sandboxes/x/files/watch?path=/a&recursive=maybe",
            "recursive='maybe' cannot",
            "true or false",
        ),
    ],
)
def test_a_parameter_that_is_wrong_says_what_it_takes(
    running: Running, query: str, message: str, fix: str
) -> None:
    told = running.ask("GET", f"/v1/{query}").json
    assert message in told["message"] and fix in told["remediation"]
