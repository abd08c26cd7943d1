"""Each port of a sandbox at a host of its own: who may open it, and what crosses."""

import contextlib
import http.client
import socket
import threading
from typing import Any

import pytest
from tests.unit.ingest.harness import ALICE, Reply, Running
from tests.unit.ingest.rest.test_ports import Inside
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PAGE = {"Accept": "text/html,*/*"}


class Visitor:
    """A program at the TCP address, which knows names below localhost as browsers do."""

    def __init__(self, running: Running, port: int) -> None:
        made = running.ask("POST", "/v1/sandboxes", {}, ALICE)
        self.id = made.json["id"]
        self.host = f"{port}-{self.id}.localhost:{running.port}"
        link = running.ask(
            "POST", f"/v1/sandboxes/{self.id}/links", {"port": port, "ttl": 60}, ALICE
        )
        assert link.status == 201
        start, _, self.token = link.json["url"].rpartition("/")
        assert start == f"http://{port}-{self.id}.localhost/.agentd"
        self.by_link = f"/.agentd/{self.token}"
        self.cookie = {"Cookie": f"agentd-link={self.token}"}
        self._running = running

    def get(
        self, path: str, headers: dict[str, str] | None = None, *, host: str = "", method: str = ""
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self._running.port, timeout=120)
        with contextlib.closing(connection):
            sent = {"Host": host or self.host} | (headers or {})
            connection.request(method or "GET", path, headers=sent)
            return Reply(connection.getresponse())


def test_a_browser_gets_a_cookie_for_its_link(running: Running) -> None:
    with Inside(OK) as inside:
        visitor = Visitor(running, inside.port)
        sent_on = visitor.get(visitor.by_link + "/a?b=c", PAGE)
        assert (sent_on.status, sent_on.headers["location"]) == (
            303,
            f"http://{visitor.host}/a?b=c",
        )
        pair, *attributes = sent_on.headers["set-cookie"].split("; ")
        assert attributes == ["Path=/", "HttpOnly", "SameSite=Lax"]
        kept = sent_on.headers["cache-control"], sent_on.headers["referrer-policy"]
        assert kept == ("no-store", "no-referrer")  # the token is in neither
        assert inside.heads == []
        cookie = {"Cookie": f"mine=1; {pair}; other=2"}
        assert visitor.get("/a?b=c", PAGE | cookie).body == b"ok"
    head = inside.heads[0]
    assert head.startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert b"\r\ncookie: mine=1; other=2\r\n" in head.lower()
    assert b"\r\nhost: " + visitor.host.encode() + b"\r\n" in head
    assert visitor.token.encode() not in head


def test_a_program_asks_below_its_link(running: Running) -> None:
    with Inside(OK) as inside:
        visitor = Visitor(running, inside.port)
        for path, seen in (("", b"/"), ("/x/y?z", b"/x/y?z"), ("//evil/%2e", b"//evil/%2e")):
            assert visitor.get(visitor.by_link + path).body == b"ok"
            assert inside.heads[-1].startswith(b"GET %b HTTP/1.1\r\n" % seen)
            assert visitor.token.encode() not in inside.heads[-1]


def test_a_link_sends_nobody_elsewhere(running: Running) -> None:
    with Inside() as inside:
        visitor = Visitor(running, inside.port)
        sent_on = visitor.get(visitor.by_link + "//evil.example/x", PAGE)
        assert sent_on.headers["location"] == f"http://{visitor.host}//evil.example/x"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Cookie": "agentd-link=nonsense"}, 401),
        ({"Cookie": "other=1"}, 401),
        (ALICE, 200),
        ({"Authorization": "Bearer agd_alice"}, 200),
        ({"X-API-Key": "agd_bob"}, 404),
        ({"X-API-Key": "agd_reader"}, 403),
        ({"X-API-Key": "agd_nobody"}, 401),
    ],
)
def test_who_may_open_it(running: Running, headers: dict[str, str], status: int) -> None:
    with Inside(OK) as inside:
        visitor = Visitor(running, inside.port)
        assert visitor.get("/", headers).status == status
        assert len(inside.heads) == (status == 200)
    assert all(b"agd_" not in head for head in inside.heads)


def test_a_link_is_for_one_port_of_one_sandbox(running: Running) -> None:
    with Inside(OK) as inside, Inside(OK) as other:
        visitor = Visitor(running, inside.port)
        second = Visitor(running, inside.port)
        for host in (
            f"{other.port}-{visitor.id}.localhost",
            f"{inside.port}-{second.id}.localhost",
        ):
            assert visitor.get("/", visitor.cookie, host=host).status == 401
            assert visitor.get(visitor.by_link, host=host).status == 401
        assert visitor.get("/", visitor.cookie).status == 200
    assert other.heads == []


def test_a_link_falls_with_what_its_maker_may_do(running: Running) -> None:
    with Inside(OK) as inside:
        visitor = Visitor(running, inside.port)
        assert visitor.get("/", visitor.cookie).status == 200
        running.service.sandboxes[visitor.id].owner = "bob"
        assert visitor.get("/", visitor.cookie).status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        (
            {
                "Sec-Fetch-Site": "same-site",
                "Sec-Fetch-Mode": "navigate",
                "Sec-Fetch-Dest": "iframe",
            },
            403,
        ),
        (
            {
                "Sec-Fetch-Site": "cross-site",
                "Sec-Fetch-Mode": "navigate",
                "Sec-Fetch-Dest": "document",
            },
            200,
        ),
        ({"Origin": "http://1-sbx-other.localhost"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_pages_of_others_do_not_ask_in_its_name(
    running: Running, headers: dict[str, str], status: int
) -> None:
    with Inside(OK) as inside:
        visitor = Visitor(running, inside.port)
        assert visitor.get("/", visitor.cookie | headers).status == status
        assert visitor.get("/", visitor.cookie | {"Origin": f"http://{visitor.host}"}).status == 200


def test_credentials_of_ours_stay_outside_and_those_of_the_server_go_in(running: Running) -> None:
    with Inside(OK) as inside:
        visitor = Visitor(running, inside.port)
        for scheme in ("Bearer agd_alice", "bearer x", "Basic dTpw"):
            headers = visitor.cookie | {"Authorization": scheme, "X-API-Key": "agd_alice"}
            assert visitor.get("/", headers).status == 200
    seen = [b"authorization" in head.lower() for head in inside.heads]
    assert seen == [False, False, True]
    assert all(b"agd_" not in head for head in inside.heads)


def test_of_who_comes_with_a_key_no_authorization_goes_in(running: Running) -> None:
    with Inside(OK) as inside:
        visitor = Visitor(running, inside.port)
        headers = {"Authorization": "Basic dTpw", "X-API-Key": "agd_alice"}
        assert visitor.get("/", headers).status == 200
    assert [b"authorization" in head.lower() for head in inside.heads] == [False]


def test_what_a_server_sets_is_for_its_host_alone(running: Running) -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=1; Domain=localhost; Path=/x\r\n"
        b"Set-Cookie: agentd-link=stolen\r\nSet-Cookie: __Host-agentd-link=x; Secure; Path=/\r\n"
        b'Clear-Site-Data: "cookies"\r\nStrict-Transport-Security: max-age=1\r\n'
        b'Alt-Svc: h2=":1"\r\nContent-Security-Policy: default-src *\r\n\r\nok'
    )
    with Inside(answer) as inside:
        visitor = Visitor(running, inside.port)
        got = visitor.get("/", visitor.cookie)
    assert got.headers.get_all("set-cookie") == ["a=1; Path=/x"]
    assert got.headers.get_all("content-security-policy") == ["default-src *"]
    for gone in ("clear-site-data", "strict-transport-security", "alt-svc"):
        assert gone not in got.headers


def test_the_api_and_the_ports_have_no_host_in_common(running: Running) -> None:
    with Inside(OK) as inside:
        visitor = Visitor(running, inside.port)
        for path in ("/v1/sandboxes", "/healthz", "/metrics", "/openapi.json", f"/v1/{visitor.id}"):
            assert visitor.get(path, ALICE).body == b"ok"
            assert visitor.get(path).status == 401
            upper = visitor.host.upper().replace("LOCALHOST", "LocalHost.")
            assert visitor.get(path, ALICE, host=upper).body == b"ok"
        # A host of another domain is nobody's port: the API, which takes a key there and no less.
        foreign = f"{inside.port}-{visitor.id}.example.org"
        assert visitor.get("/v1/sandboxes", ALICE, host=foreign).json["sandboxes"]
        assert visitor.get("/", visitor.cookie, host=foreign).status == 404
        running.service.anyone = None
        assert visitor.get("/v1/sandboxes", host="rebound.example").status == 403
        assert visitor.get(visitor.by_link, host=f"localhost:{running.port}").status == 404


def test_on_the_unix_socket_the_kernel_says_who_asks_and_the_page_who_does_not(
    running: Running,
) -> None:
    with Inside(OK) as inside:
        host = {"Host": f"{inside.port}-{running.sandbox()}.localhost"}
        assert running.ask("GET", "/v1/sandboxes", None, host).body == b"ok"
        evil = host | {"Origin": "http://evil.example"}
        assert running.ask("GET", "/", None, evil).status == 403
        another = Visitor(running, inside.port)  # alice's, and nobody of the socket's
        theirs = {"Host": another.host}
        assert running.ask("GET", "/", None, theirs).status == 404
    assert len(inside.heads) == 1


def test_a_dead_server_is_told_in_a_sentence(running: Running) -> None:
    with Inside() as inside:
        port = inside.port
    visitor = Visitor(running, port)
    dead = visitor.get("/", visitor.cookie)
    assert (dead.status, dead.code) == (502, "guest_error")
    assert visitor.get("/", visitor.cookie, host=f"70000-{visitor.id}.localhost").status == 400


def test_a_websocket(running: Running) -> None:
    hosts: list[str] = []

    def echo(socket: Any) -> None:
        hosts.append(socket.request.headers["Host"])
        assert "agentd" not in str(socket.request.headers)
        for message in socket:
            socket.send(message)

    with serve(echo, "127.0.0.1", 0) as server:
        port = server.socket.getsockname()[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            visitor = Visitor(running, port)

            def open_(path: str, **headers: str) -> Any:
                return connect(
                    f"ws://{visitor.host}{path}",
                    sock=_socket(running),
                    additional_headers=headers,
                    origin=None,
                )

            with open_("/x", **visitor.cookie, Origin=f"http://{visitor.host}") as client:
                client.send("there and back")
                assert client.recv(120) == "there and back"
            with open_(visitor.by_link) as client:
                client.send(b"\0\1")
                assert client.recv(120) == b"\0\1"
            for headers, status in (
                ({}, 401),
                ({**visitor.cookie, "Origin": "http://evil.example"}, 403),
            ):
                with pytest.raises(InvalidStatus) as refused:
                    open_("/x", **headers)
                assert refused.value.response.status_code == status
        finally:
            server.shutdown()
            thread.join()
    assert hosts == [visitor.host] * 2


def _socket(running: Running) -> Any:
    return socket.create_connection(("127.0.0.1", running.port), 120)
