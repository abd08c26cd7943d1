"""Listeners of every kind, who is at their other end, and how it all ends."""

import asyncio
import contextlib
import datetime
import errno
import http.client
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.unit.ingest.fake import until
from tests.unit.ingest.harness import Running, UnixConnection, read_all, sse
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import unix_connect

from agentd import Client, Unreachable
from agentd.ingest.web import listeners
from agentd.ingest.web.limits import WebLimits
from agentd.model.errors import Conflict, InvalidInput


def _seen(running: Running) -> tuple[int, int]:
    credential = running.service.seen["credential"]
    return credential.peer_pid, credential.peer_uid


def test_the_kernel_says_who_asks_on_a_unix_socket(running: Running) -> None:
    running.ask("GET", "/v1/version")
    assert _seen(running) == (os.getpid(), os.getuid())
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(b'GET /v1/version HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); s.recv(100)"
    )
    with subprocess.Popen([sys.executable, "-c", script, running.path]) as other:
        assert other.wait(120) == 0
    assert _seen(running)[0] == other.pid


def test_a_websocket_knows_its_peer_too(running: Running) -> None:
    id_, process = running.process("wait")
    running.service.seen = {}
    url = f"ws://localhost/v1/sandboxes/{id_}/processes/{process}/attach"
    with unix_connect(running.path, url) as client:
        client.recv(timeout=120)
    assert _seen(running) == (os.getpid(), os.getuid())


def test_answers_on_tcp_do_not_wait_for_acknowledgements(running: Running) -> None:
    """Without TCP_NODELAY the second write of every answer waits 40 ms (Nagle, RFC 896)."""
    found = []
    for connection in tuple(running.server._state.connections):
        connection.transport.close()
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(1 << 16)
        for connection in tuple(running.server._state.connections):
            sock = connection.transport.get_extra_info("socket")
            if sock.family == socket.AF_INET:
                found.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    assert found == [1]


def test_inherited_tcp_sockets_have_no_delay_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:  # proto 0, as systemd's may be
        monkeypatch.setattr(listeners, "_FIRST_FD", os.dup(passed.fileno()))
        environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}
        (found,) = listeners.inherited(environ)
        assert environ == {}
        assert found.socket.proto == socket.IPPROTO_TCP
        assert not os.get_inheritable(found.socket.fileno())
        port = passed.getsockname()[1]
        with Running(tmp_path, more=[found]):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            with contextlib.closing(connection):
                connection.request("GET", "/healthz")
                assert connection.getresponse().read() == b"ok\n"


def test_sockets_for_another_process_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert listeners.inherited({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
    assert listeners.inherited({}) == []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as odd:
        monkeypatch.setattr(listeners, "_FIRST_FD", os.dup(odd.fileno()))
        with pytest.raises(InvalidInput):
            listeners.inherited({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})


# --- unix sockets ---


def test_a_socket_has_its_permissions_before_anybody_connects(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "s")
    with contextlib.closing(listeners.unix(path, mode=0o660, group=str(os.getgid()))):
        found = os.stat(path)
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, os.getgid())
    assert not os.path.exists(path)
    with pytest.raises(InvalidInput, match="no group"):
        listeners.unix(path, group="no-such-group")


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with contextlib.closing(listeners.unix(path)), pytest.raises(Conflict):
        listeners.unix(path)
    (tmp_path / "s").write_text("a file")
    with pytest.raises(InvalidInput):
        listeners.unix(path)
    assert (tmp_path / "s").read_text() == "a file"


def test_another_daemons_socket_is_not_removed_with_ours(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    ours = listeners.unix(path)
    os.rename(path, path + ".old")
    with contextlib.closing(listeners.unix(path)):
        ours.close()
        assert os.path.exists(path)


# --- TLS ---


class Authority:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.ca = self._write("ca", self._sign(self._name, self._key, is_ca=True))

    def issue(self, name: str) -> tuple[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        cert = self._write(name, self._sign(subject, key, is_ca=False))
        path = self._folder / f"{name}.key"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return cert, str(path)

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_ca: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        usage = dict.fromkeys(
            (
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=True, key_cert_sign=is_ca, **usage), critical=True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _write(self, name: str, cert: x509.Certificate) -> str:
        path = self._folder / f"{name}.pem"
        path.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        return str(path)


def _tls_client(authority: Authority, cert: tuple[str, str] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.ca)
    if cert is not None:
        context.load_cert_chain(*cert)
    return context


def test_tls_and_client_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = listeners.tls_context(*authority.issue("server"), client_ca=authority.ca)
    plain = listeners.tls_context(*authority.issue("server2"))
    more = [
        *listeners.tcp("127.0.0.1", 0, tls=server),
        *listeners.tcp("127.0.0.1", 0, tls=plain),
    ]
    assert all(found.name.startswith("https://127.0.0.1:") for found in more)
    mutual, one_way = (found.socket.getsockname()[1] for found in more)
    with Running(tmp_path, more=more) as running:

        def ask(port: int, context: ssl.SSLContext) -> int:
            connection = http.client.HTTPSConnection(
                "localhost", port, timeout=120, context=context
            )
            with contextlib.closing(connection):
                connection.request("GET", "/v1/version")
                return connection.getresponse().status

        client = authority.issue("client")
        assert ask(mutual, _tls_client(authority, client)) == 200
        der = ssl.PEM_cert_to_DER_cert(Path(client[0]).read_text())
        assert running.service.seen["credential"].certificate == der
        # On a listener that verifies none, a certificate proves nothing.
        assert ask(one_way, _tls_client(authority, client)) == 401
        assert running.service.seen["credential"].certificate is None
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(mutual, _tls_client(authority))
        with socket.create_connection(("127.0.0.1", mutual)) as rude:
            rude.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert b"HTTP" not in rude.recv(1 << 16)


def test_a_client_is_told_what_names_the_certificates_that_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    server = listeners.tls_context(*authority.issue("server"), client_ca=authority.ca)
    plain = listeners.tls_context(*authority.issue("server2"))
    more = [
        *listeners.tcp("127.0.0.1", 0, tls=server),
        *listeners.tcp("127.0.0.1", 0, tls=plain),
    ]
    mutual, one_way = (found.socket.getsockname()[1] for found in more)

    def refused(port: int) -> Unreachable:
        url = f"https://localhost:{port}"
        with Client(url) as client, pytest.raises(Unreachable) as caught:
            client.capabilities.call("fs.list.v1", {"path": "."}, emit=lambda kind, data: None)
        return caught.value

    with Running(tmp_path, more=more):
        unknown = refused(one_way)
        assert "certificate verify failed" in unknown.cause and "AGENTD_CA" in unknown.remediation
        monkeypatch.setenv("AGENTD_CA", authority.ca)
        assert "AGENTD_CERT" in refused(mutual).remediation


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("nonsense")
    for path in ("/nonexistent", str(tmp_path / "x")):
        with pytest.raises(InvalidInput):
            listeners.tls_context(path)


# --- how it ends ---


def test_drain_lets_what_runs_end_and_takes_no_more(tmp_path: Path) -> None:
    with Running(tmp_path) as running:
        id_ = running.sandbox()
        replies = []
        asking = threading.Thread(
            target=lambda: replies.append(
                running.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": ["wait"]})
            )
        )
        asking.start()
        processes = running.service.sandboxes[id_].processes
        until(lambda: len(processes) == 1)
        with contextlib.closing(running.connect()) as idle:
            idle.connect()
            running.begin_to_end(drain=20)
            until(lambda: not os.path.exists(running.path))
            assert read_all(idle.sock) == b""  # a connection between requests is closed
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(FileNotFoundError):
            late.connect(running.path)
        next(iter(processes.values())).end()
        asking.join()
    assert replies[0].status == 200
    assert running.drained is True


def test_what_does_not_end_in_time_is_told_so(tmp_path: Path) -> None:
    with Running(tmp_path) as running:
        id_ = running.sandbox()
        replies = []
        asking = threading.Thread(
            target=lambda: replies.append(
                running.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": ["wait"]})
            )
        )
        asking.start()
        until(lambda: len(running.service.sandboxes[id_].processes) == 1)
        running.begin_to_end(drain=0.1)
        asking.join()
    assert (replies[0].status, replies[0].json["code"]) == (503, "interrupted")
    assert running.drained is False


def test_followers_are_sent_away_when_it_drains(tmp_path: Path) -> None:
    with Running(tmp_path) as running, contextlib.closing(running.connect()) as following:
        id_, process = running.process("wait")
        path = f"/v1/sandboxes/{id_}/processes/{process}"
        running.service.sandboxes[id_].processes[process].write("stdout", b"x")
        following.request("GET", f"{path}/output", headers={"Accept": "text/event-stream"})
        events = sse(following.getresponse())
        assert next(events)["id"] == "1:0"
        with contextlib.closing(running.connect()) as raw:
            raw.request("GET", f"{path}/output?stream=stdout&follow=true")
            response = raw.getresponse()
            assert response.read(1) == b"x"
            with unix_connect(running.path, f"ws://localhost{path}/attach") as socket_:
                socket_.recv(timeout=120)
                running.begin_to_end(drain=20)
                assert list(events) == []  # whole, and without an exit: come back from "1:0"
                with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                    response.read()
                with pytest.raises(ConnectionClosed) as closed:
                    while True:
                        socket_.recv(timeout=120)
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
    assert running.drained is True


def test_connections_between_requests_end_by_and_by(tmp_path: Path) -> None:
    with Running(tmp_path, WebLimits(idle=1.0)) as running, running.raw() as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_all(client).endswith(b"ok\n")


def test_metrics_where_there_are_some(tmp_path: Path) -> None:
    with Running(tmp_path, metrics=lambda: b"agentd_up 1\n") as running:
        assert running.ask("GET", "/metrics").body == b"agentd_up 1\n"
        paths = json.loads(running.ask("GET", "/openapi.json").body)["paths"]
        assert "/metrics" in paths


def test_a_socket_that_cannot_be_served_anew_is_tried_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    def look() -> str:
        asyncio.run_coroutine_threadsafe(running.server.look(), running.loop).result(120)
        return running.server.trouble

    os.unlink(running.path)
    with monkeypatch.context() as patched:
        patched.setattr(running.loop, "create_server", refuse)
        assert "was removed: [Errno 24] too many open files" in look()
    assert look() == ""
    with contextlib.closing(UnixConnection(running.path)) as client:
        client.request("GET", "/healthz")
        assert client.getresponse().status == 200
