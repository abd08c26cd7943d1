"""A network of rules: a wall that has such a thing holds to it, and any other refuses the rules."""

import http.server
import threading
from collections.abc import Callable, Iterator

import pytest

from agentd import Sandbox
from agentd.testing.walls.claims import granted, needs

#: No name server has it (RFC 6761).
RULE = "allowed.invalid:443"
DIAL = """
import errno, socket, sys
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 60) as made:
            made.sendall(b"?")
            print("through" if made.recv(1) else "closed")
    except socket.gaierror:
        print("unknown")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
#: Prints the status of each of three requests.
ASK = """
import http.client, sys
for method, path in (("GET", "/v1/x"), ("POST", "/v1/x"), ("GET", "/v2/x")):
    asked = http.client.HTTPConnection("host.agentd.internal", int(sys.argv[1]), timeout=60)
    asked.request(method, path)
    print(asked.getresponse().status)
"""
OWN = """
import socket
with socket.create_server(("0.0.0.0", 8080)) as server:
    with socket.create_connection(("127.0.0.1", 8080), 60) as made, server.accept()[0] as taken:
        taken.sendall(b"own")
        print(made.recv(9).decode())
"""


@pytest.fixture
def restricted(make: Callable[..., Sandbox]) -> Iterator[Sandbox]:
    sandbox = granted(make, net=[RULE])
    needs(sandbox, "python3")
    yield sandbox


def test_the_report_has_the_rules(restricted: Sandbox) -> None:
    control = restricted.enforcement["network"]
    assert (control.asked, control.enforced) == ("restricted", True)
    assert RULE in control.detail


def test_nothing_is_reached_that_no_rule_names(restricted: Sandbox) -> None:
    numbers = ("192.0.2.1:443", "169.254.169.254:80", "2001:db8::1:443", "8.8.8.8:443")
    names = ("localhost.invalid:443", "example.com:443")
    done = restricted.run(["python3", "-c", DIAL, *numbers, *names], check=True)
    told = done.text.split()
    assert set(told[:4]) <= {"closed", "ECONNRESET", "ECONNREFUSED", "EPIPE", "ENETUNREACH"}, told
    assert told[4:] == ["unknown", "unknown"]
    found = restricted.network.connections().connections
    assert {row.address for row in found if not row.allowed} >= {"192.0.2.1", "8.8.8.8"}
    assert not any(row.allowed for row in found)


def test_its_loopback_is_its_own(restricted: Sandbox) -> None:
    assert restricted.run(["python3", "-c", OWN], check=True).text == "own\n"


class _Api(http.server.BaseHTTPRequestHandler):
    """Allows everything; ``asked`` is what came to it."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.requestline)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def api() -> Iterator[tuple[int, list[str]]]:
    """The port of a service on the loopback of this machine, and what it was asked."""
    asked: list[str] = []
    handler = type("Api", (_Api,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, asked
        server.shutdown()
        thread.join()


def test_requests_are_judged_one_by_one(
    make: Callable[..., Sandbox], api: tuple[int, list[str]]
) -> None:
    port, asked = api
    sandbox = granted(make, net=[f"GET host.agentd.internal:{port}/v1/*"])
    needs(sandbox, "python3")
    done = sandbox.run(["python3", "-c", ASK, str(port)], check=True)
    assert done.text.split() == ["200", "403", "403"]
    assert asked == ["GET /v1/x HTTP/1.1"]
    rows = sandbox.network.connections().connections
    told = [(row.method, row.path, row.status) for row in rows if row.method]
    assert told == [("GET", "/v1/x", 200), ("POST", "/v1/x", 403), ("GET", "/v2/x", 403)]


def test_its_rules_can_be_changed(restricted: Sandbox) -> None:
    restricted.network.set(["other.invalid:443"])
    done = restricted.run(["python3", "-c", DIAL, "8.8.8.8:443"])
    assert done.text != "through\n"
    assert "other.invalid" in done.enforcement["network"].detail
    assert RULE not in done.enforcement["network"].detail
