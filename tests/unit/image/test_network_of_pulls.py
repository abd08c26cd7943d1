"""Whom a pull has named: the registry, and its mirrors of registries.conf."""

import pytest

from agentd.egress.destinations import Place
from agentd.image.oci.mirrors import MIRRORS
from agentd.image.oci.network import FetchNetwork
from agentd.image.oci.source import parse

_CONFIGURATION = b"""
[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "localhost:5000/hub"
[[registry]]
prefix = "*.corp.example"
location = "127.0.0.1:5001"
[[registry]]
prefix = "one.example/team"
location = "one.example/team"
[[registry.mirror]]
location = "[::1]:5002"
[[registry.mirror]]
location = "10.0.0.1:5003"
"""


@pytest.mark.parametrize(
    ("image", "here"),
    [
        ("python:3", {("127.0.0.1", 5000), ("::1", 5000)}),
        ("docker.io/library/python", {("127.0.0.1", 5000), ("::1", 5000)}),
        ("a.corp.example/x", {("127.0.0.1", 5001)}),
        ("a.corp.example:8443/x", {("127.0.0.1", 5001)}),
        ("corp.example/x", set()),
        ("one.example/team/x:1", {("::1", 5002)}),
        ("one.example/team:1", {("::1", 5002)}),
        ("one.example/teams/x", set()),
        ("localhost/x", {(each, port) for each in ("127.0.0.1", "::1") for port in (443, 80)}),
        ("localhost:1080/x", {("127.0.0.1", 1080), ("::1", 1080)}),
        ("127.9.9.9:5/x", {("127.9.9.9", 5)}),
    ],
)
@pytest.mark.parametrize("path", [MIRRORS, f"{MIRRORS}.d/mine.conf"])
def test_what_leads_to_this_machine(image: str, here: set[tuple[str, int]], path: str) -> None:
    files = {path: _CONFIGURATION, f"{MIRRORS}.d/broken.conf": b"[[[", "/etc/other": b"[[["}
    made = FetchNetwork(parse(f"docker://{image}"), None, files)
    socks = [each for each in made.entrances if each.to is None]
    rest = [each for each in made.entrances if each.to is not None]
    assert {each.scheme for each in socks} == {"http", "https"}
    assert {(each.address, each.port) for each in rest} == here
    # Nobody has the place of another.
    assert len({Place(each.address, each.port) for each in made.entrances}) == len(made.entrances)


@pytest.mark.parametrize("port", ["0", "65536", "9" * 5000])
def test_a_mirror_at_no_port_leads_nowhere(port: str) -> None:
    wrong = f'[[registry]]\nlocation = "a.b"\n[[registry.mirror]]\nlocation = "[::1]:{port}"'
    made = FetchNetwork(parse("docker://a.b/x"), None, {MIRRORS: wrong.encode()})
    assert [each for each in made.entrances if each.to is not None] == []
