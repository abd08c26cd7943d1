"""Bodies that two readers could take for two things, and what is said of those that are none."""

import gzip
import json
from typing import Any

import pytest
from tests.unit.ingest.harness import Running

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("body", [
    b'{"net": "host", "net": "none"}',
    b'{"labels": {"a": "1", "a": "2"}}',
    b'{"net": "none", "\\u006eet": "none"}',
])  # fmt: skip
def test_a_key_that_is_there_twice_is_refused(running: Running, body: bytes) -> None:
    reply = running.ask("POST", "/v1/sandboxes", body, JSON)
    assert (reply.status, reply.code) == (400, "invalid_input")
    assert "twice" in reply.json["message"]


@pytest.mark.parametrize("path", ["/v1/sandboxes", "/v1/run", "/v1/call", "/v1/keys"])
def test_an_encoded_body_is_not_taken_for_what_it_is_not(running: Running, path: str) -> None:
    headers = {**JSON, "Content-Encoding": "gzip"}
    for body in (b"{}", gzip.compress(b"{}")):
        reply = running.ask("POST", path, body, headers)
        assert (reply.status, reply.code) == (415, "unsupported_media_type")
    assert (
        running.ask("POST", "/v1/sandboxes", b"{}", {**JSON, "Content-Encoding": "identity"}).status
        == 201
    )


def test_an_encoded_file_is_refused_as_well(running: Running) -> None:
    path = f"/v1/sandboxes/{running.sandbox()}/files?path=/x"
    assert running.ask("PUT", path, b"x", {"Content-Encoding": "gzip"}).status == 415


@pytest.mark.parametrize("text", ["\\ud800", "\\udc00", "a\\ud83d"])
def test_half_of_a_pair_is_told_as_that(running: Running, text: str) -> None:
    body = b'{"workspace": "' + text.encode() + b'"}'
    reply = running.ask("POST", "/v1/sandboxes", body, JSON)
    assert (reply.status, reply.code) == (400, "invalid_input")
    assert "surrogate" in reply.json["message"]


def test_a_number_of_many_digits_is_no_fault_of_ours(running: Running) -> None:
    body = b'{"capability": "echo.v1", "parameters": {"n": ' + b"1" * 5000 + b"}}"
    assert running.ask("POST", "/v1/call", body, JSON).status < 500


def test_a_whole_pair_is_text(running: Running) -> None:
    body: Any = json.dumps({"labels": {"a": "\U0001f600"}}).encode()
    assert running.ask("POST", "/v1/sandboxes", body, JSON).status == 201
