"""Whom a pull reaches: on a host with a neighbour, which has public and private addresses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration import pulling
from tests.leading import SECRET

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    *(pytest.mark.root, pytest.mark.needs("ip"), pytest.mark.needs("skopeo", "umoci")),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    outer = {name: value for name, value in os.environ.items() if not name.endswith("_PROXY")}
    done = subprocess.run(
        [sys.executable, "-m", pulling.__name__],
        cwd=ROOT,
        env={**outer, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def servers(pull: dict[str, Any]) -> set[str]:
    return set(pull["asked"])


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("public", {"public"}),
        ("tls", {"tls"}),  # whose certificate a CA of certs.d has signed
        ("realm both", {"public"}),  # at that one of its addresses which is public
        ("named number", {"5000"}),
        ("named name", {"5000"}),
        ("named own", {"own"}),
        ("mirror", {"5000"}),
        ("rule port", {"public", "8080"}),
        ("rule name", {"public", "private"}),
        ("rule network", {"public", "private"}),
        ("rule own", {"public", "own"}),
        ("rule host", {"public", "own"}),
        ("proxy", {"public", "proxy"}),
        ("proxy not for it", {"public"}),
    ],
)
def test_an_image_is_pulled_of(found: dict[str, Any], name: str, asked: set[str]) -> None:
    assert found[name]["code"] == 0, found[name]["said"]
    assert servers(found[name]) == asked


@pytest.mark.parametrize(
    ("name", "reason", "fix"),
    [
        ("realm mine.example", "10.9.0.9 is private", "--net mine.example:80"),
        ("realm mapped.example", "10.9.0.9 is private", "--net mapped.example:80"),
        ("realm 10.9.0.9", "no rule has the address 10.9.0.9", "--net 10.9.0.9:80"),
        ("realm [::ffff:10.9.0.9]", "no rule has the address 10.9.0.9", "--net 10.9.0.9:80"),
        ("realm of a mirror", "no rule has the address 10.9.0.9", "--net 10.9.0.9:5001"),
        ("realm port", "port 8080 is not among 80, 443", "--net auth.example:8080"),
        ("realm loop.example", "127.0.0.1 is this machine itself", "host.agentd.internal:80"),
        ("realm own.example", "203.0.113.1 is this machine itself", "host.agentd.internal:80"),
        ("realm linked.example", "169.254.77.77 is link-local", "nobody is let there"),
        ("realm zero.example", "0.0.0.0 means this host", "nobody is let there"),
        ("realm translated.example", "127.0.0.1 is loopback", "nobody is let there"),
        ("blobs", "no rule has the address 10.9.0.9", "--net 10.9.0.9:80"),
        ("named loopback", "127.0.0.1 is this machine itself", "host.agentd.internal:80"),
        ("named link", "169.254.77.77 is link-local", "nobody is let there"),
        ("rule own denied", "denied by !203.0.113.1", "leave that rule out"),
        ("rule own taken back", "203.0.113.1 is this machine itself", "host.agentd.internal:80"),
        ("rule denied", "denied by !203.0.113.0/24", "leave that rule out"),
        ("proxy realm", "no rule has the address 10.9.0.9", "--net 10.9.0.9:80"),
        ("proxy realm own", "203.0.113.1 is this machine itself", "host.agentd.internal:80"),
    ],
)
def test_nobody_else_is_asked(found: dict[str, Any], name: str, reason: str, fix: str) -> None:
    pull = found[name]
    assert pull["code"] == 125, pull
    assert servers(pull) <= {"public", "proxy"}, pull["asked"]
    assert f"which is not asked: {reason}" in pull["said"] and fix in pull["said"], pull


def test_a_token_of_a_host_that_a_rule_names_is_sent(found: dict[str, Any]) -> None:
    for name in ("rule port", "rule name", "rule own"):
        sent = [authorization for _, authorization in found[name]["asked"]["public"]]
        assert f"Bearer {SECRET}" in sent, name


def test_a_proxy_connects_and_is_told_who_asks(found: dict[str, Any]) -> None:
    asked = found["proxy"]["asked"]["proxy"]
    assert ["registry.example:80", "me:word"] in asked  # of HTTP_PROXY
    assert ["registry.example:80", ""] in asked  # of HTTPS_PROXY
    assert ["auth.example:80", "me:word"] in asked
    assert not any(pulling.PRIVATE in place for place, _ in found["proxy realm"]["asked"]["proxy"])
