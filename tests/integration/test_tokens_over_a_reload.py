"""Tokens of an issuer that cannot be reached as the configuration is taken over anew."""

import http.server
import json
import signal
import threading
import time
from collections.abc import Iterator

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.security.daemons import running, until

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
