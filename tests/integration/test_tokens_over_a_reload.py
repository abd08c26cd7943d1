"""Tokens of an issuer that cannot be reached as the configuration is taken over anew."""

import contextlib
import http.server
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.security.daemons import WAIT, running, until

CONFIG = """
[[auth.jwt]]
name = "corp"
issuer = "https://id.example"
audience = ["agentd"]
algorithms = ["ES256"]
jwks_url = "http://localhost:{port}/jwks"
grants = {{dev = ["read"]}}
"""


class Issuer(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.asked, self.is_up = 0, True
        super().__init__(("127.0.0.1", 0), Asked)

    @property
    def keys(self) -> bytes:
        public = jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return json.dumps({"keys": [public | {"kid": "a"}]}).encode()

    def token(self) -> str:
        claims = {"iss": "https://id.example", "aud": "agentd", "sub": "ann", "scope": "dev"}
        claims |= {"exp": int(time.time()) + 3600}
        return jwt.encode(claims, self.key, "ES256", headers={"kid": "a"})


class Asked(http.server.BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(200 if self.server.is_up else 503)
        self.end_headers()
        self.wfile.write(self.server.keys)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_an_issuer_that_is_down_lets_in_whom_it_did_before_a_reload(issuer: Issuer) -> None:
    with running(CONFIG.format(port=issuer.server_port)) as daemon:
        bearer = {"Authorization": f"Bearer {issuer.token()}"}
        assert daemon.ask("GET", "/v1/sandboxes", **bearer).status == 200
        issuer.is_up = False
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: b"the configuration is taken over" in daemon.log)
        answer = daemon.ask("GET", "/v1/sandboxes", **bearer)
        assert answer.status == 200, answer.body
        assert issuer.asked == 2  # what it has taken back holds no longer than before


def test_an_issuer_that_answers_in_drops_holds_up_no_login() -> None:
    ended = threading.Event()

    def drip(one: socket.socket) -> None:
        one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not ended.wait(0.2):
            one.sendall(b" ")

    def serve() -> None:
        with contextlib.suppress(OSError), issuer.accept()[0] as one:
            drip(one)

    with contextlib.ExitStack() as stack:
        issuer = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        issuer.settimeout(WAIT)
        thread = threading.Thread(target=serve)
        thread.start()
        stack.callback(thread.join)
        stack.callback(ended.set)
        daemon = stack.enter_context(running(CONFIG.format(port=issuer.getsockname()[1])))
        token = jwt.encode(
            {"iss": "https://id.example", "aud": "agentd", "exp": int(time.time()) + 3600},
            ec.generate_private_key(ec.SECP256R1()),
            "ES256",
            headers={"kid": "a"},
        )
        # Of one whose caller is known: a stranger's connection is cut after a while.
        client = stack.enter_context(contextlib.closing(daemon.connect()))
        client.request("GET", "/v1/sandboxes")
        known = client.getresponse()
        assert (known.status, len(known.read()) > 0) == (200, True)
        client.request("GET", "/v1/sandboxes", headers={"Authorization": f"Bearer {token}"})
        answer = client.getresponse()
        told = json.loads(answer.read())
    assert (answer.status, told["code"]) == (401, "unauthenticated"), told
    assert "answer within 5 s" in told["cause"], told
