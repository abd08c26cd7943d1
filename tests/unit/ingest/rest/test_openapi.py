"""The document says what the server does: checked against the contract, and by random requests."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from tests.unit.ingest.harness import Running

from agentd.ingest.rest.app import operations
from agentd.ingest.rest.openapi import document

_DOCS = Path(__file__).parents[4] / "docs/api.md"


def _documented() -> set[str]:
    """Methods and paths of the table in docs/api.md, with ``...`` and lists written out."""
    found: set[str] = set()
    for line in _DOCS.read_text().splitlines():
        if not line.startswith("| `"):
            continue
        prefix = "/v1/sandboxes/{id}"
        method = ""
        for text in re.findall(r"`([^`]+)`", line.split("|")[1]):
            word, _, path = text.rpartition(" ")
            method = word or method
            if path.startswith("..."):
                path = prefix + path.removeprefix("...")
            elif path in ("/resume", "/readyz", "/metrics", "/openapi.json") or word == "":
                path = "/v1/sandboxes/{id}" + path if path == "/resume" else path
            if "processes/{proc}/" in path and not path.startswith("/v1"):
                path = prefix + path
            found.add(f"{method} {path}")
    return {entry for entry in found if not entry.startswith(("WS ", "any "))}


def test_every_documented_operation_is_there_and_no_other() -> None:
    served = {f"{o.method} {o.path}" for o in operations(metrics=True)} | {"GET /openapi.json"}
    assert served - {"HEAD /v1/sandboxes/{id}/files"} == _documented()


def test_every_reference_leads_somewhere() -> None:
    made = document(operations(), "1")
    schemas = made["components"]["schemas"]
    references = re.findall(r"#/components/schemas/(\w+)", str(made))
    assert set(references) <= set(schemas)
    assert {"SandboxBody", "ExecBody", "ResultView", "ErrorView"} <= set(schemas)
    ids = [o["operationId"] for path in made["paths"].values() for o in path.values()]
    assert len(ids) == len(set(ids))


def test_it_is_served_to_anybody(running: Running) -> None:
    reply = running.ask("GET", "/openapi.json", tcp=True)
    assert (reply.status, reply.json["openapi"]) == (200, "3.1.0")
    body = reply.json["paths"]["/v1/run"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/RunBody"}


def test_random_requests_get_what_the_document_says(running: Running) -> None:
    """Where schemathesis is installed: what it makes up is never a 500, and always as described."""
    schemathesis: Any = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    made = running.ask("GET", "/openapi.json").json
    id_, process = running.process("echo", "x")
    schema = schemathesis.openapi.from_dict(made)
    seen = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith(("/watch", "/output", "/tar", "/stream")):
            continue  # without an end, or of no type that it can make up

        @given(case=operation.as_strategy())
        @settings(
            max_examples=8,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Any) -> None:
            for name, value in (("id", id_), ("proc", process)):
                if name in (case.path_parameters or {}) and len(case.path_parameters[name]) % 2:
                    case.path_parameters[name] = value
            case.headers = {**(case.headers or {}), "X-API-Key": "agd_alice"}
            with contextlib.suppress(UnicodeEncodeError):
                response = case.call(base_url=f"http://127.0.0.1:{running.port}", timeout=120)
                assert response.status_code != 500, response.text
                case.validate_response(
                    response,
                    checks=[
                        schemathesis.checks.not_a_server_error,
                        schemathesis.checks.CHECKS.get_one("response_schema_conformance"),
                        schemathesis.checks.CHECKS.get_one("content_type_conformance"),
                    ],
                )

        check()
        seen += 1
    assert seen > 30
