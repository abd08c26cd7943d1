"""The host of a port, with real sandboxes: by link, by command, from the SDK, and after a kill."""

import asyncio
import contextlib
import http.client
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from tests.integration.test_ports_of_a_sandbox import fetched
from tests.security.daemons import WAIT, Daemon, running

from agentd import AsyncClient, AsyncSandbox, Client, Refused, Sandbox, Unavailable, Unsupported

_TCP = '[[listen]]\naddress = "127.0.0.1:0"\n'
# Says what it was asked, and then a word each time that it reads one: a stream that nobody buffers.
SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(f"{self.path}\\n{self.headers}".encode())
        self.wfile.flush()
        if self.path == "/stream":
            for line in sys.stdin:
                self.wfile.write(line.encode())
                self.wfile.flush()
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = ThreadingHTTPServer(("127.0.0.1", 8080), Handler)
print("up", flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running(_TCP) as made:
        yield made


@contextlib.contextmanager
def opened(
    url: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> Iterator[http.client.HTTPResponse]:
    """As a browser does: what is below localhost is 127.0.0.1."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=WAIT)
    with contextlib.closing(connection):
        sent = {"Host": parts.netloc} | (headers or {})
        connection.request("GET" if body is None else "POST", parts.path or "/", body, sent)
        yield connection.getresponse()


def status(url: str, **headers: str) -> int:
    with opened(url, {name.replace("_", "-"): value for name, value in headers.items()}) as answer:
        return answer.status


def test_from_the_link_to_the_server_and_its_end(daemon: Daemon) -> None:
    mine, other = daemon.key("a"), daemon.key("b")
    with Sandbox.create(url=daemon.url, api_key=mine) as sandbox:
        link = sandbox.ports.link(8080, ttl="10m")
        assert (link.sandbox, link.port) == (sandbox.id, 8080)
        assert (
            link.expires is not None and 0 < link.expires - time.time() <= 600.001
        )  # milliseconds
        found = re.fullmatch(r"http://8080-(sbx-\w+)\.localhost:\d+/\.agentd/([\w-]{43})", link.url)
        assert found is not None and found[1] == sandbox.id
        assert found[2] not in repr(link)
        with opened(link.url) as dead:  # nobody listens yet
            assert dead.status == 502 and b"8080" in dead.read()
        with sandbox.start(["python3", "-c", SERVER], stdin=True) as server:
            assert next(iter(server)).data == b"up\n"
            with opened(link.url + "/page?x", {"X-API-Key": mine}) as page:
                seen = page.read().decode()
            assert seen.startswith("/page\n")
            assert found[2] not in seen and "agd_" not in seen
            body = bytes(3 << 20)
            with opened(link.url + "/", body=body) as answer:
                assert answer.read() == body
            with opened(link.url + "/stream") as stream:
                assert stream.readline() == b"/stream\n"
                while stream.readline().strip():
                    pass
                for word in (b"one\n", b"two\n"):
                    server.write(word)
                    assert stream.readline() == word
            bare = link.url.partition("/.agentd")[0]
            assert [status(bare), status(bare, X_API_Key=other)] == [401, 404]
            assert status(bare, X_API_Key=daemon.key("c", "read")) == 403
            assert status(bare, Cookie=f"agentd-link={found[2]}") == 200
            assert status(bare.replace("8080-", "8081-"), Cookie=f"agentd-link={found[2]}") == 401
            # The API is not there, and the host of the API has no port.
            assert status(bare + "/v1/sandboxes", Cookie=f"agentd-link={found[2]}") == 200
            assert status(f"http://localhost:{urlsplit(bare).port}/.agentd/{found[2]}") == 404
    assert status(link.url) in (404, 410)
    acts = daemon.records(kind="admission", sandbox=sandbox.id, capability="sandbox.port.v1")
    assert len(acts) >= 4


@pytest.mark.parametrize("backend", ["linux", "oci"])
def test_a_program_that_keeps_cookies_goes_the_way_of_a_browser(
    daemon: Daemon, backend: str
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    try:
        sandbox = Sandbox.create(url=daemon.url, backend=backend)
    except Unavailable as error:
        pytest.skip(str(error))
    with sandbox, sandbox.start(["python3", "-c", SERVER], stdin=True) as server:
        assert next(iter(server)).data == b"up\n"
        words = ["curl", "-sS", "-L", "-b", "", "-H", "Accept: text/html"]
        words += ["-w", "%{url_effective}", sandbox.ports.link(8080).url + "/a?b"]
        told = subprocess.check_output(words, text=True, timeout=WAIT)
    seen, _, where = told.rpartition("\n")
    assert seen.startswith("/a?b\n") and "agentd-link" not in seen
    assert re.fullmatch(rf"http://8080-{sandbox.id}\.localhost:\d+/a\?b", where)


def test_a_link_falls_with_the_key_that_made_it(daemon: Daemon) -> None:
    mine = daemon.key("d")
    box = daemon.sandbox(mine)
    url = daemon.ask("POST", f"/v1/sandboxes/{box}/links", {"port": 8080}, key=mine).json["url"]
    assert status(url) == 502  # nobody listens, and it may ask
    with Client(daemon.url) as admin:
        (key,) = [key for key in admin.keys.list() if key.principal == "d"]
        admin.keys.revoke(key.id)
    assert status(url) == 401
    daemon.ask("DELETE", f"/v1/sandboxes/{box}")


def test_what_was_opened_by_a_link_ends_with_it(daemon: Daemon) -> None:
    with (
        Sandbox.create(url=daemon.url) as sandbox,
        sandbox.start(["python3", "-c", SERVER], stdin=True) as server,
    ):
        assert next(iter(server)).data == b"up\n"
        link = sandbox.ports.link(8080, ttl="5s")
        with opened(link.url + "/stream") as stream:
            assert stream.readline() == b"/stream\n"
            with contextlib.suppress(http.client.HTTPException, ConnectionError):
                stream.read()  # until it is cut off
        assert status(link.url) == 401
        with opened(sandbox.ports.link(8080).url) as still_there:
            assert still_there.status == 200


def test_more_than_is_allowed_is_refused(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url) as sandbox:
        with pytest.raises(Refused, match="1d at most"):
            sandbox.ports.link(8080, ttl="25h")
        for body in ({"port": 0}, {"port": 65536}, {"port": 80, "ttl": "soon"}, {}):
            assert daemon.ask("POST", f"/v1/sandboxes/{sandbox.id}/links", body).status == 400
        unfit = daemon.key("e", "read")
        path = f"/v1/sandboxes/{sandbox.id}/links"
        assert daemon.ask("POST", path, {"port": 80}, key=unfit).status == 403
        assert daemon.ask("POST", path, {"port": 80}, key=daemon.key("f")).status == 404
        assert daemon.ask("POST", path, {"port": 80}, Idempotency_Key="x").status == 400


def test_for_asyncio_and_by_the_command_line(daemon: Daemon) -> None:
    async def main() -> list[str]:
        async with await AsyncSandbox.create(url=daemon.url) as sandbox:
            link = await sandbox.ports.link(8080)
            async with AsyncClient(daemon.url) as client:
                second = await client.ports.link(sandbox.id, 8080, ttl=60)
            words = [sys.executable, "-m", "agentd", "port", sandbox.id, "8080", "--link"]
            words += ["--url", daemon.url]
            plain = await asyncio.to_thread(subprocess.check_output, words, text=True)
            told = await asyncio.to_thread(
                subprocess.check_output, [*words, "--json", "--ttl", "2m"], text=True
            )
            return [link.url, second.url, plain.strip(), json.loads(told)["url"]]

    urls = asyncio.run(main())
    assert len({url.partition("/.agentd/")[0] for url in urls}) == 1
    assert len(set(urls)) == 4


def test_without_a_daemon_on_tcp_it_is_a_port_of_this_machine() -> None:
    with running() as daemon:
        for where in ({"embedded": True}, {"url": daemon.url}):
            with Sandbox.create(**where) as sandbox:  # type: ignore[arg-type]
                link = sandbox.ports.link(8080)
                assert re.fullmatch(rf"http://8080-{sandbox.id}\.localhost:\d+", link.url)
                assert link.expires is None
                assert sandbox.ports.link(8080) == link
                with sandbox.start(["python3", "-c", SERVER], stdin=True) as server:
                    assert next(iter(server)).data == b"up\n"
                    with opened(link.url) as page:
                        assert b"\nHost: 8080-sbx-" in page.read()
                    assert fetched(sandbox.ports.url(8080), "/x").startswith(b"/x\n")
        with Client(daemon.url) as client, Sandbox.create(url=daemon.url) as sandbox:
            with pytest.raises(Unsupported, match="no TCP address"):
                client.ports.link(sandbox.id, 8080)
            words = [sys.executable, "-m", "agentd", "port", sandbox.id, "8080", "--link"]
            done = subprocess.run(
                [*words, "--url", daemon.url], capture_output=True, text=True, check=False
            )
            assert done.returncode == 125 and "ports.url" in done.stderr


def test_below_a_name_of_ones_own() -> None:
    config = _TCP + '[ports]\nurl = "https://ports.example.org:8443"\nmax_ttl = "2h"\n'
    with running(config) as made, Sandbox.create(url=made.url) as sandbox:
        link = sandbox.ports.link(80)
        start = f"https://80-{sandbox.id}.ports.example.org:8443/.agentd/"
        assert link.url.startswith(start)
        number = re.findall(r"127\.0\.0\.1:([0-9]+)", made.log.decode())[0]
        here = f"http://127.0.0.1:{number}/.agentd/{link.url.removeprefix(start)}"
        host = {"Host": f"80-{sandbox.id}.ports.example.org:8443", "Accept": "text/html"}
        with opened(here, host) as sent_on:
            assert sent_on.status == 303
            assert sent_on.headers["Location"] == start.removesuffix(".agentd/")
            assert sent_on.headers["Set-Cookie"].startswith("__Host-agentd-link=")
            assert sent_on.headers["Set-Cookie"].endswith("; Secure")
        with pytest.raises(Refused, match="2h at most"):
            sandbox.ports.link(80, ttl="3h")


def test_a_siblings_page_takes_nobodys_link_away() -> None:
    """In the clear it can set the link's cookie for all below the operator's name."""
    with (
        running(_TCP + '[ports]\nurl = "http://ports.example.org"\n') as made,
        Sandbox.create(url=made.url) as sandbox,
        sandbox.start(["python3", "-c", SERVER], stdin=True) as server,
    ):
        assert next(iter(server)).data == b"up\n"
        own, other = (sandbox.ports.link(port).url.rpartition("/")[2] for port in (8080, 8081))
        number = re.findall(r"127\.0\.0\.1:([0-9]+)", made.log.decode())[0]
        here = f"http://127.0.0.1:{number}/"

        def asked(cookie: str) -> tuple[int, str]:
            host = {"Host": f"8080-{sandbox.id}.ports.example.org", "Cookie": cookie}
            with opened(here, host) as answer:
                return answer.status, answer.read().decode()

        for set_ in ("garbage", other, ""):
            for cookie in (f"agentd-link={set_}; agentd-link={own}; theirs=1",
                           f"agentd-link={own}; theirs=1; agentd-link={set_}"):  # fmt: skip
                code, seen = asked(cookie)
                assert code == 200 and "\ncookie: theirs=1\n" in seen, seen
        assert asked(f"agentd-link={other}; agentd-link=garbage")[0] == 401
