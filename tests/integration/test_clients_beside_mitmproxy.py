"""What a server is asked through the terminator is what it is asked through mitmproxy, and with
nothing between: by the same programs, unchanged. Answers are the same, too, and come as they come.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import ports
from tests.integration.clients.origin import Origin
from tests.integration.read_server import EchoServer, serving
from tests.security.daemons import running, until
from tests.unit.capability.fetch.authority import Authority

from agentd import Sandbox
from agentd.sandbox.backends.certificates import VARIABLES

FOLDER = os.environ.get("AGENTD_TEST_MITMPROXY", "")
pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="make test-clients has mitmproxy, and asks it"),
    pytest.mark.needs("curl", "node", "git"),
    pytest.mark.timeout(900),
]
OURS, THEIRS, BARE = "ours.example.com", "mitm.example.com", "bare.example.com"
_RUN = "from mitmproxy.tools.main import mitmdump; mitmdump()"
#: What is of one connection, and never the same; and what mitmproxy answers in the server's place.
_OF_EACH = ("sec-websocket-key", "expect")
_CURL = """
url=https://$1/v1/x
curl -sS -A a/1 -H 'X-A: b  c' -H 'x-a: d' -H 'Empty;' -b 'k=v; l="w"' "$url?q=a%20b&r=%2F&s"
curl -sS --data-binary 'a=1&b=%2F' $url; curl -sS -X DELETE $url; curl -sS -I $url | head -1
printf 'in chunks' | curl -sS -T - $url
head -c 2000000 /dev/zero | curl -sS --data-binary @- -o /dev/null -w '%{http_code}' $url
curl -sS --compressed -r 0-9 -u user:word $url $url -e https://elsewhere.example/
"""
_REQUESTS = """
import requests, sys
session, url = requests.Session(), f"https://{sys.argv[1]}/v1/\\u00e4/x"
session.cookies.set("k", "v")
for answer in (
    session.get(url, params={"q": "a b", "r": "/", "s": ""}, headers={"X-Empty": ""}),
    session.post(url, json={"a": ["\\u00e4", 1]}),
    session.put(url, data=iter([b"first", b"second"])),
    session.patch(url, data={"a": "b c"}),
    session.options(url),
    session.head(url),
):
    print(answer.status_code, answer.text)
"""
_NODE = """
const url = `https://${process.argv[1]}/v1/x?q=a+b`;
(async () => {
  for (const options of [
    { headers: { "X-A": "b, c", Accept: "text/event-stream" } },
    { method: "POST", body: JSON.stringify({ a: 1 }), headers: { "content-type": "a/b" } },
    { method: "PUT", body: new Blob(["in", "chunks"]).stream(), duplex: "half" },
    { method: "DELETE" },
  ]) console.log(await (await fetch(url, options)).text());
})();
"""
_EVENTS = """
import sys, urllib.request
url = f"https://{sys.argv[1]}/v1"
with urllib.request.urlopen(f"{url}/events") as events:
    print(events.readline(), events.readline())
    urllib.request.urlopen(f"{url}/on", data=b"").read()
    print(events.read())
"""
_SOCKET = """
import sys
from websockets.sync.client import connect
with connect(f"wss://{sys.argv[1]}/v1/socket", compression=None) as socket:
    socket.send("said over a socket")
    print(socket.recv(timeout=60))
"""
PROGRAMS = {
    "curl": ["sh", "-ec", _CURL, "sh"],
    "requests": ["python3", "-c", _REQUESTS],
    "node": ["node", "-e", _NODE],
    "events": ["python3", "-c", _EVENTS],
    "socket": ["python3", "-c", _SOCKET],
}


@contextlib.contextmanager
def _mitmproxy(folder: Path, to: int) -> Iterator[int]:
    """A port at which mitmproxy ends TLS, and asks the server at ``to`` the same."""
    port = ports.free()
    settings = (
        f"confdir={folder}",
        "ssl_insecure=true",
        "keep_host_header=true",
        "http2=false",
        "stream_large_bodies=1",  # else it keeps events back until there are no more
    )
    words = [word for each in settings for word in ("--set", each)]
    mode = f"reverse:https://127.0.0.1:{to}@127.0.0.1:{port}"
    argv = [sys.executable, "-c", _RUN, "-q", "--mode", mode, *words]
    env = {**os.environ, "PYTHONPATH": FOLDER}
    with subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL) as process:
        try:
            until(lambda: process.poll() is not None or _answers(port))
            assert process.poll() is None, "mitmproxy ended"
            yield port
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("beside")
    folder.chmod(0o755)
    return Authority(folder, [OURS, THEIRS, BARE], [])


@pytest.fixture(scope="module")
def server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoServer]:
    handler = type("OfThisFolder", (Origin,), {"folder": tmp_path_factory.mktemp("origin")})
    with serving(authority.server, handler) as made:
        yield made


@pytest.fixture(scope="module")
def sandboxes(
    authority: Authority, server: EchoServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Sandbox]]:
    """For each name one whose programs can ask there."""
    folder = tmp_path_factory.mktemp("mitmproxy")
    with _mitmproxy(folder, server.server_port) as port:
        ports = {OURS: server.server_port, THEIRS: port, BARE: server.server_port}
        config = '[sandbox]\nnetworks = ["none", "restricted"]\n[egress]\n'
        config += (
            f'allow = ["public", "{OURS}", "{THEIRS}", "{BARE}"]\nca_file = "{authority.ca}"\n'
        )
        for name, each in ports.items():
            config += f'[[egress.host]]\nname = "{name}"\naddress = "127.0.0.1:{each}"\n'
        roots = Path(authority.ca).read_bytes() + (folder / "mitmproxy-ca-cert.pem").read_bytes()
        packages = ["requests", "websockets"]
        env = dict.fromkeys(VARIABLES, "/workspace/ca.pem")
        with (
            running(config) as daemon,
            Sandbox.create(url=daemon.url, net=[f"{OURS}/**"], packages=packages) as read,
            Sandbox.create(
                url=daemon.url, net=[THEIRS, BARE], packages=packages, env=env
            ) as spliced,
        ):
            spliced.files.write("/workspace/ca.pem", roots)
            yield {OURS: read, THEIRS: spliced, BARE: spliced}


def _fields(got: list[tuple[str, str]], name: str) -> list[tuple[str, str]]:
    """In their order; but the host comes first, as RFC 9110 has it, wherever a program says it."""
    found = [(k, v.replace(name, "HOST")) for k, v in got if k.lower() not in _OF_EACH]
    return sorted(found, key=lambda field: field[0].lower() != "host")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_server_is_asked_the_same_and_the_program_answered_the_same(
    sandboxes: dict[str, Sandbox], server: EchoServer, program: str
) -> None:
    heard, said = {}, {}
    for name, sandbox in sandboxes.items():
        server.seen.clear()
        done = sandbox.run([*PROGRAMS[program], name], timeout=300)
        assert done.exit_code == 0, (name, done.stderr)
        said[name] = re.sub(r'(?:, )?\["(?:Expect|Sec-WebSocket-Key)", "[^"]*"\]', "", done.text)
        said[name] = said[name].replace(name, "HOST")
        heard[name] = [(line, _fields(got, name), body) for line, got, body in server.seen]
    assert len(heard[OURS]) >= 2
    assert heard[OURS] == heard[BARE]
    assert heard[OURS] == heard[THEIRS]
    assert said[OURS] == said[BARE] == said[THEIRS]
