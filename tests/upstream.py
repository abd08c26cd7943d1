"""A server of an API, with TLS, that keeps what it was asked and says it back."""

import contextlib
import http.server
import json
import ssl
import threading
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agentd.egress import authority

_BROKEN = {
    "status": b"no key %b\r\n\r\n",
    "field": b"HTTP/1.1 200 OK\r\nis no field: %b\r\n\r\n",
    "name": b"HTTP/1.1 200 OK\r\n%b: x\r\nContent-Length: 0\r\n\r\n",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b\r\n",
}


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that trusts another authority goes away: that is its affair."""


class ClosedSocket(ssl.SSLSocket):
    """Debian 12's ssl leaves one open whose client has gone before the handshake."""

    def __del__(self) -> None:
        self.close()


class Upstream:
    """Serves ``names`` at 127.0.0.1; ``ca_file`` is the certificate of its own authority.

    GET is answered with the headers, POST with the body, each as JSON. Of the target are: /gzip,
    encoded; /redirect, to another host with the Authorization header in the target; /plain, the
    Authorization header alone, in two pieces; /trailers, with it in a field behind the body;
    /websocket, which says back what it is told;
    /broken/LINE, what is no HTTP, with it in the status line, in a field or in the size of a chunk.
    """

    def __init__(self, folder: Path, *names: str) -> None:
        self.asked: list[dict[str, Any]] = []
        made = authority.make(names)
        self.ca_file = str(folder / "upstream-ca.pem")
        Path(self.ca_file).write_text(made.certificate)
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.port = int(self._server.server_address[1])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslsocket_class = ClosedSocket
        context.load_cert_chain(_pair(made, folder, names))
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        asked = self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def log_message(self, *_: object) -> None:
                pass

            def _switch(self) -> None:
                """To what is said back as it comes."""
                self.send_response(101)
                self.send_header("Upgrade", "websocket")
                self.send_header("Connection", "Upgrade")
                self.end_headers()
                self.close_connection = True
                with contextlib.suppress(OSError):
                    while data := self.rfile.read1(65536):
                        asked[-1]["body"] += data.hex()
                        self.wfile.write(data)

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length)
                headers = dict(self.headers.items())
                asked.append({"target": self.path, "headers": headers, "body": body.decode()})
                if self.path == "/websocket":
                    self._switch()
                    return
                said = headers.get("Authorization", "")
                with contextlib.suppress(OSError):
                    self._answer(json.dumps({"headers": headers, "body": body.decode()}), said)

            def _answer(self, told: str, said: str) -> None:
                data = told.encode()
                if self.path.startswith("/broken/"):
                    self.close_connection = True
                    self.wfile.write(_BROKEN[self.path.removeprefix("/broken/")] % said.encode())
                    return
                if self.path == "/plain":
                    data = said.encode()
                if self.path == "/trailers":
                    self.send_response(200)
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    self.wfile.write(b"0\r\nX-Said: %b\r\n\r\n" % said.encode())
                    return
                redirects = self.path == "/redirect"
                self.send_response(302 if redirects else 200, said or None)
                if redirects:
                    self.send_header("Location", f"https://evil.example.com/?{said}")
                if self.path == "/gzip":
                    self.send_header("Content-Encoding", "gzip")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.wfile.write(data[len(data) // 2 :])

        return Handler


def _pair(made: authority.Authority, folder: Path, names: tuple[str, ...]) -> str:
    """A file with a certificate for ``names``, and its key."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    own = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(made.certificate.encode())
    signer = serialization.load_pem_private_key(made.key.encode(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]))
        .issuer_name(issuer.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
        )
        .sign(signer, hashes.SHA256())
    )
    key = own.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / "upstream.pem"
    path.write_bytes(leaf.public_bytes(serialization.Encoding.PEM) + key)
    return str(path)
