"""Secrets in requests that go through a terminator to a server, and in what it answers."""

import base64
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.captured import Captured, eventually, relayed
from tests.unit.egress.terminator.test_frames import frame
from tests.upstream import Upstream

from agentd.client.cli import refused
from agentd.egress import authority, connections
from agentd.egress.compile import compile_table
from agentd.egress.keeper import RelayKeeper
from agentd.egress.placeholders import placeholder
from agentd.egress.terminating import Reading
from agentd.egress.terminator.credentials import pack_secrets
from agentd.model.egress import EgressBounds, StaticHost
from agentd.model.network import ConnectionPage, ConnectionView
from agentd.model.secret import SecretValue, parse_secret
from agentd.model.typed import convert

if TYPE_CHECKING:
    from agentd.egress.admitted import Admitted

KEY = "sk-ant-TheKeyOfTheTest0123456789abcdef"
HOSTS = ("api.example.com", "other.example.com")
CLIENT = """
import http.client, ssl
def asked(host, method, target, headers, body=None, tls=True):
    address = resolve(host)[1]
    sock = socket.create_connection((address, 443), 60)
    if tls:
        context = ssl.create_default_context(cadata=CERTIFICATE)
        sock = context.wrap_socket(sock, server_hostname=host)
    connection = http.client.HTTPConnection(host)
    connection.sock = sock
    connection.request(method, target, body, headers)
    answer = connection.getresponse()
    headers = dict(answer.getheaders(), words=answer.reason)
    return answer.status, headers, answer.read().decode()
def quietly(call, *given):
    try:
        return call(*given)
    except Exception as error:
        return repr(error)
def spoken(host, said, whole=False):
    sock = socket.create_connection((resolve(host)[1], 443), 60)
    context = ssl.create_default_context(cadata=CERTIFICATE)
    sock = context.wrap_socket(sock, server_hostname=host)
    sock.sendall(said.encode())
    told = sock.recv(65536)
    while whole and (more := sock.recv(65536)):
        told += more
    return told.decode()
"""


SWITCHES = """
def switched(host, key, frames):
    context = ssl.create_default_context(cadata=CERTIFICATE)
    sock = socket.create_connection((resolve(host)[1], 443), 60)
    lines = ["GET /websocket HTTP/1.1", "Host: " + host, "Connection: Upgrade"]
    lines += ["Upgrade: websocket", "Authorization: " + key.decode(), "", ""]
    with context.wrap_socket(sock, server_hostname=host) as sock:
        sock.sendall("\\r\\n".join(lines).encode())
        head = b""
        while not head.endswith(b"\\r\\n\\r\\n"):
            head += sock.recv(1)
        sock.sendall(frames)
        said = b""
        while len(said) < len(frames) and (data := sock.recv(4096)):
            said += data
        return head[:12].decode(), said.hex()
"""


class World:
    """A program in a network of its own, a relay, a terminator and two hosts with TLS."""

    def __init__(self, keeper: RelayKeeper, upstream: Upstream, secret: str) -> None:
        binding = parse_secret(secret).binding
        value = SecretValue(KEY)
        self.binding = msgspec.structs.replace(binding, placeholder=placeholder(value))
        self.standing = self.binding.placeholder
        self.keeper = keeper
        self.upstream = upstream
        self.program = Captured()
        static = tuple(StaticHost(name, "127.0.0.1", upstream.port) for name in HOSTS)
        rules = ("api.example.com:443", "other.example.com:443/**")
        table = compile_table(rules, EgressBounds(None, static), [self.binding])
        made = authority.make(HOSTS)
        self.admitted: Admitted = keeper.admit(
            self.program.sockets, table, Reading(made, ca_file=upstream.ca_file)
        )
        self.admitted.give_secrets(pack_secrets([self.binding], {self.binding.name: value}))
        client = SWITCHES + f"CERTIFICATE = {made.certificate!r}\n{CLIENT}"
        self.program.ask(f"exec({client!r}, globals())")

    def ask(
        self,
        host: str = HOSTS[0],
        target: str = "/",
        body: str | None = None,
        *,
        tls: bool = True,
        **headers: str,
    ) -> Any:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        method = "GET" if body is None else "POST"
        return self.program.ask(
            f"asked({host!r}, {method!r}, {target!r}, {named!r}, {body!r}, {tls})"
        )

    def rows(self) -> list[dict[str, Any]]:
        return [row for row in self.admitted.connections().rows if "method" in row]


@pytest.fixture(params=["KEY@api.example.com"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    upstream = Upstream(tmp_path, *HOSTS)
    try:
        with relayed() as (keeper, _):
            made = World(keeper, upstream, request.param)
            yield made
            made.program.close()
    finally:
        upstream.close()


def test_a_host_is_asked_with_the_value_and_answers_with_the_placeholder(world: World) -> None:
    status, headers, said = world.ask(Authorization=f"Bearer {world.standing}")
    assert (status, headers["words"]) == (200, f"Bearer {world.standing}")
    assert world.upstream.asked[0]["headers"]["Authorization"] == f"Bearer {KEY}"
    assert json.loads(said)["headers"]["Authorization"] == f"Bearer {world.standing}"
    basic = base64.b64encode(f"me:{world.standing}".encode()).decode()
    _, _, said = world.ask(target="/plain", Authorization=f"Basic {basic}")
    sent = world.upstream.asked[1]["headers"]["Authorization"].removeprefix("Basic ")
    assert base64.b64decode(sent).decode() == f"me:{KEY}"
    assert said == f"Basic {basic}"
    status, headers, _ = world.ask(target="/redirect", Authorization=world.standing)
    assert (status, headers["Location"]) == (302, f"https://evil.example.com/?{world.standing}")


def test_elsewhere_it_is_refused_and_told_as_an_alarm(world: World) -> None:
    for target, body, headers in (
        ("/", None, {"Authorization": world.standing}),
        (f"/?{world.standing}", None, {}),
        ("/", f"a body with {world.standing} in it", {}),
    ):
        status, found, said = world.ask(HOSTS[1], target, body, **headers)
        assert (status, found["Agentd-Refused"]) == (403, "credential_elsewhere")
        told = json.loads(said)["error"]
        assert "secret KEY is not for other.example.com" in told["message"]
        assert "api.example.com" in told["message"]
        assert KEY not in said
    assert not [each for each in world.upstream.asked if world.standing in json.dumps(each)]
    rows = [row for row in world.rows() if row.get("alarm")]
    assert len(rows) == 3
    assert all(not row["allowed"] and "KEY" in row["reason"] for row in rows)
    page = ConnectionPage(tuple(convert(row, ConnectionView) for row in rows), 0, {}, {})
    said = refused.said(page, ["api.example.com"])
    assert "secret KEY is not for other.example.com" in said
    assert "allow what should be" not in said  # no rule would have it go there
    assert KEY not in str(rows)


def test_what_was_refused_is_told_however_much_was_done_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST", 5)
    assert world.ask(HOSTS[1], Authorization=world.standing)[0] == 403
    assert world.ask(X_Other=world.standing)[0] == 403
    for _ in range(10):
        assert world.ask()[0] == 200
    first, second, *rest = world.rows()
    assert first.get("alarm") and "KEY is not for" in first["reason"]
    assert not second["allowed"] and "X-Other" in second["reason"]
    assert len(rest) <= 5


def test_what_cannot_be_looked_at_is_not_passed_on(world: World) -> None:
    status, headers, said = world.ask(target="/gzip", Authorization=world.standing)
    assert (status, headers["Agentd-Refused"]) == (502, "credential_encoded")
    assert KEY not in said


def test_what_is_no_answer_tells_nothing_of_the_value(world: World) -> None:
    for broken in ("status", "field", "name"):
        found = world.ask(target=f"/broken/{broken}", Authorization=world.standing)
        assert found[0] == (200 if broken == "name" else 502)
        assert KEY not in str(found)
        assert KEY.lower() not in str(found)
    found = world.program.ask(
        f"quietly(asked, {HOSTS[0]!r}, 'GET', '/broken/chunk',"
        f" {{'Authorization': {world.standing!r}}})"
    )
    assert KEY not in str(found)
    rows = world.rows()
    assert [row["reason"] for row in rows if "illegal" in row["reason"]]
    assert KEY not in str(rows)


def test_the_placeholder_of_another_host_is_refused_behind_a_body_too(world: World) -> None:
    said = (
        f"POST / HTTP/1.1\r\nHost: {HOSTS[1]}\r\nTransfer-Encoding: chunked\r\n\r\n"
        f"0\r\nX-T: {world.standing}\r\n\r\n"
    )
    told = world.program.ask(f"spoken({HOSTS[1]!r}, {said!r})")
    assert told.startswith("HTTP/1.1 403"), told
    assert [row for row in world.rows() if row.get("alarm")]


def test_what_comes_behind_an_answer_is_looked_at_too(world: World) -> None:
    said = (
        f"GET /trailers HTTP/1.1\r\nHost: {HOSTS[0]}\r\nAuthorization: {world.standing}\r\n"
        "Connection: close\r\n\r\n"
    )
    told = world.program.ask(f"spoken({HOSTS[0]!r}, {said!r}, True)")
    assert f"x-said: {world.standing}" in told.lower().replace(
        world.standing.lower(), world.standing
    )
    assert KEY.lower() not in told.lower()


def test_where_it_is_not_put_says_how_to_have_it_there(world: World) -> None:
    status, _, said = world.ask(target=f"/?key={world.standing}")
    assert status == 403
    assert "places=target" in json.loads(said)["error"]["remediation"]
    world.ask(body=f"spell {world.standing}")
    assert world.upstream.asked[-1]["body"] == f"spell {world.standing}"


@pytest.mark.parametrize("world", ["KEY@api.example.com,places=target+body"], indirect=True)
def test_a_target_and_a_body_have_it_where_they_are_to(world: World) -> None:
    _, _, said = world.ask(target=f"/v1?key={world.standing}", body=f"key={world.standing}")
    asked = world.upstream.asked[0]
    assert (asked["target"], asked["body"]) == (f"/v1?key={KEY}", f"key={KEY}")
    assert KEY not in said
    assert json.loads(said)["body"] == f"key={world.standing}"


@pytest.mark.parametrize("world", ["KEY@api.example.com,places=header+body"], indirect=True)
def test_a_websocket_has_it_where_bodies_do_and_elsewhere_breaks_off(world: World) -> None:
    held = world.standing.encode()
    # A server says back what it read, without a mask; this one says back all that it gets.
    said, masked = frame(b"auth " + held, key=b""), frame(b"auth " + held)
    ask = f"switched({HOSTS[0]!r}, {held!r}, {said!r})"
    assert world.program.ask(ask) == ["HTTP/1.1 101", said.hex()]
    asked = world.upstream.asked[0]
    assert asked["headers"]["Authorization"] == KEY
    assert asked["body"] == frame(b"auth " + KEY.encode(), key=b"").hex()
    world.program.ask(f"switched({HOSTS[0]!r}, {held!r}, {masked!r})")
    assert world.upstream.asked[1]["body"] == frame(b"auth " + KEY.encode()).hex()
    world.program.ask(f"switched({HOSTS[1]!r}, b'mine', {masked!r})")
    assert world.upstream.asked[2]["body"] == ""
    assert [row["name"] for row in world.rows() if row.get("alarm")] == [HOSTS[1]]


@pytest.mark.parametrize("world", ["KEY@api.example.com,header=X-Api-Key: k={}"], indirect=True)
def test_a_header_is_set_at_each_request(world: World) -> None:
    world.ask()
    world.ask(x_api_key="mine", Authorization=world.standing)
    for asked in world.upstream.asked:
        headers = {name.lower(): text for name, text in asked["headers"].items()}
        assert headers["x-api-key"] == f"k={KEY}"
    assert KEY not in json.dumps(world.upstream.asked[1]["headers"].get("Authorization"))


def test_the_next_terminator_has_it_too(world: World) -> None:
    assert world.ask(Authorization=world.standing)[0] == 200
    before = world.keeper.terminating.pid
    os.kill(before, signal.SIGKILL)
    eventually(lambda: world.keeper.terminating.pid not in (0, before))

    def answered() -> bool:
        found = world.ask(Authorization=world.standing)
        return isinstance(found, list) and found[0] == 200

    eventually(answered)
    assert world.upstream.asked[-1]["headers"]["Authorization"] == KEY
