"""What a sandbox may be asked for, and the words in which the rest is refused."""

from typing import Any

import pytest
from tests.security.daemons import Daemon, fixture

daemon = fixture()


@pytest.mark.parametrize(("body", "words"), [
    ({"labels": {"a": "x\0y"}}, "without NUL"),
    ({"memory": 2**63}, "at most 9223372036854775807 bytes"),
    ({"memory": "9E"}, "512K"),
    ({"memory": 0}, "at least 1 MiB"),
    ({"cpus": -0.0}, "0.5 or 2"),
])  # fmt: skip
def test_it_is_told_what_would_do(daemon: Daemon, body: dict[str, Any], words: str) -> None:
    answer = daemon.ask("POST", "/v1/sandboxes", body)
    assert answer.status == 400 and words in answer.json["remediation"], answer.body


def test_a_size_is_exact() -> None:
    from agentd.model.units import parse_size

    assert parse_size(2**63 - 1) == 2**63 - 1
    assert parse_size(2**53 + 1) == 2**53 + 1


def test_a_wall_that_is_too_weak_here_is_not_to_be_asked_for(daemon: Daemon) -> None:
    answer = daemon.ask("POST", "/v1/sandboxes", {"isolation": "none", "backend": "host"})
    assert answer.code == "refused", answer.body
    assert "--isolation none" not in answer.json["remediation"]
    assert "sandbox.minimum" in answer.json["remediation"]


@pytest.mark.parametrize(("inner", "name"), [
    ({"limits": {"open_file": 32}}, "limits.open_files"),
    ({"limits": {"memory": "1G"}}, "address_space"),
    ({"pty": {"row": 24}}, "pty.rows"),
])  # fmt: skip
def test_a_field_that_is_not_known_is_refused_within_a_body_too(
    daemon: Daemon, inner: dict[str, Any], name: str
) -> None:
    box = daemon.sandbox()
    body = {"cmd": "true", **inner}
    for path, asked in ((f"/v1/sandboxes/{box}/exec", body), ("/v1/run", {"exec": body})):
        answer = daemon.ask("POST", path, asked)
        assert (answer.status, answer.code) == (400, "invalid_input"), answer.body
        assert name in answer.json["remediation"], answer.body


def test_a_size_with_a_field_that_is_not_known_changes_nothing(daemon: Daemon) -> None:
    box = daemon.sandbox()
    started = {"cmd": "stty size; read -r line; stty size", "wait": False, "stdin_open": True}
    begun = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {**started, "pty": {}}).json
    path = f"/v1/sandboxes/{box}/processes/{begun['id']}"
    answer = daemon.ask("POST", f"{path}/resize", {"rows": 50, "columns": 132})
    assert (answer.status, answer.code) == (400, "invalid_input"), answer.body
    assert daemon.ask("POST", f"{path}/stdin", b"\n").status == 204
    shown = daemon.ask("GET", f"{path}/output?stream=pty&follow=true").body
    assert shown.count(b"24 80") == 2, shown
