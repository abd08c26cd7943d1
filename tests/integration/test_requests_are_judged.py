"""Rules of methods and paths: what a sandbox's programs ask is judged request by request."""

import json
from collections.abc import Iterator

import pytest
from tests.integration.read_server import EchoServer, serving
from tests.security.daemons import Daemon, running
from tests.unit.capability.fetch.authority import Authority

from agentd import Sandbox

HOST = "api.example.com"
RULES = [f"GET|HEAD|POST {HOST}/v1/*", "read plain.example.com:80/v1/*"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("authority")
    folder.chmod(0o755)
    return Authority(folder, [HOST, "other.example.com"], [])


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[EchoServer]:
    with serving(authority.server) as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> Iterator[EchoServer]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def daemon(server: EchoServer, plain: EchoServer, authority: Authority) -> Iterator[Daemon]:
    hosts = {HOST: server, "other.example.com": server, "plain.example.com": plain}
    config = f"""
[sandbox]
networks = ["none", "restricted"]
[egress]
allow = ["public", "{HOST}", "other.example.com", "plain.example.com"]
ca_file = "{authority.ca}"
"""
    for name, each in hosts.items():
        config += f'[[egress.host]]\nname = "{name}"\naddress = "127.0.0.1:{each.server_port}"\n'
    with running(config) as made:
        yield made


@pytest.fixture(scope="module")
def sandbox(daemon: Daemon) -> Iterator[Sandbox]:
    with Sandbox.create(url=daemon.url, net=RULES) as made:
        yield made


def curl(sandbox: Sandbox, *words: str) -> tuple[int, str]:
    """The status and the body; the status is 0 where there was no answer."""
    argv = ["curl", "-sS", "-m", "60", "-o", "/tmp/body", "-w", "%{http_code}", *words]
    done = sandbox.run(["sh", "-c", '"$@" && echo && cat /tmp/body', "sh", *argv])
    status, _, body = done.stdout.decode().partition("\n")
    return int(status or 0), body if done.exit_code == 0 else done.stderr.decode()


@pytest.mark.needs("curl")
def test_curl_is_answered_what_a_rule_allows_and_told_what_none_does(sandbox: Sandbox) -> None:
    status, body = curl(sandbox, f"https://{HOST}/v1/models?a=b")
    assert (status, json.loads(body)["line"]) == (200, "GET /v1/models?a=b HTTP/1.1")
    status, body = curl(sandbox, f"https://{HOST}/v2/models")
    assert status == 403
    error = json.loads(body)["error"]
    assert (error["code"], error["host"], error["path"]) == ("denied", HOST, "/v2/models")
    assert error["remediation"] == f"allow it with --net 'GET {HOST}/v2/models'"
    assert curl(sandbox, "-X", "DELETE", f"https://{HOST}/v1/models")[0] == 403


@pytest.mark.needs("curl")
@pytest.mark.parametrize(
    "wall",
    [
        pytest.param("oci", marks=pytest.mark.needs("runc")),
        pytest.param("gvisor", marks=[pytest.mark.needs("runsc"), pytest.mark.timeout(300)]),
    ],
)
def test_containers_trust_an_authority_of_their_own_and_use_secrets(
    daemon: Daemon, server: EchoServer, wall: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", "a-key-that-never-enters-it")
    made = {"url": daemon.url, "backend": wall, "secrets": [f"API_TOKEN=env:API_TOKEN@{HOST}"]}
    with Sandbox.create(net=RULES, **made) as sandbox:
        script = f'curl -sS -m 60 -o /dev/null -H "X-Api-Key: $API_TOKEN" https://{HOST}/v1/keys'
        assert sandbox.run(["sh", "-c", script]).stderr == b""
        (asked,) = [headers for line, headers, _ in server.seen if "/v1/keys" in line]
        assert dict(asked)["X-Api-Key"] == "a-key-that-never-enters-it"
        server.seen.clear()
        # Whoever looks at the system's file instead trusts the same.
        script = f"env -i curl -sS -m 60 https://{HOST}/v2/keys"
        assert '"denied"' in sandbox.run(["sh", "-c", script], check=True).text
        assert not server.seen
        certificates = sandbox.run("cat /etc/ssl/certs/ca-certificates.crt", check=True).text
        with Sandbox.create(net=RULES, **made) as other:
            told = other.run("cat /etc/ssl/certs/ca-certificates.crt", check=True).text
        own = set(certificates.split("-----BEGIN")) - set(told.split("-----BEGIN"))
        assert len(own) == 1  # a stolen one is of no use in another
