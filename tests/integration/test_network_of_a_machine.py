"""The network of a virtual machine, by the door: no card, and what its rules name all the same."""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.unit.egress.relay.test_hello import client_hello

from agentd import Sandbox
from agentd.client import build
from agentd.client.embedded_service import EmbeddedService
from agentd.daemon.pipeline import Pipeline
from agentd.egress import keeper
from agentd.model.egress import EgressBounds, StaticHost
from agentd.model.principal import local
from agentd.sandbox.manager import Manager
from agentd.testing.patience import SLOWER

pytestmark = [pytest.mark.needs("qemu-system-x86_64"), pytest.mark.timeout(900)]
WHO = local("test")
RULES = ["db.internal:*", "web.internal:443"]
#: Where connections are read, with an authority that programs are to trust, and without TLS here.
READ = [*RULES, "read plain.internal:80/v1/*"]
BUNDLE = "/.agentd/certificates/bundle.pem"
DIALS, COMES = "said('db.internal', 5432)", "comes('db.internal', 5432)"
#: Each line of standard input is an expression, each of the output what came of it.
TRIES = r"""
import errno, json, socket, struct, sys, time
def said(host, port, what=b"who?", kind=socket.SOCK_STREAM):
    (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=kind)
    with socket.socket(family, kind, protocol) as sock:
        sock.settimeout(60)
        sock.connect(address)
        sock.send(what)
        return sock.recv(100).decode("latin-1") or "closed"
def whole(host, port, size):
    with socket.create_connection((host, port), 60) as sock:
        sock.sendall(b"all\n" + bytes(size))
        sock.shutdown(socket.SHUT_WR)
        return sum(len(part) for part in iter(lambda: sock.recv(65536), b""))
def stream(to, address, port):
    with socket.socket(socket.AF_VSOCK) as sock:
        sock.connect((2, to))
        sock.send(struct.pack(">BBH16s", 1, 4, port, bytes(address)))
        return sock.recv(1).decode() or "closed"
def comes(host, port):
    # Once the front end is there again: until then nothing gets an answer.
    for _ in range(600):
        try:
            return said(host, port)
        except OSError:
            time.sleep(0.1)
    return "never"
def asked(method, path):
    head = f"{method} {path} HTTP/1.1\r\nHost: plain.internal\r\nContent-Length: 0\r\n\r\n"
    return said("plain.internal", 80, head.encode()).split("\r\n")[0]
def udp(host, port):
    return said(host, port, b"quic", socket.SOCK_DGRAM)
def tried(line):
    try:
        return eval(line)
    except socket.gaierror as error:
        return "unknown" if error.errno == socket.EAI_NONAME else "unanswered"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
print(json.dumps([tried(line) for line in sys.argv[1:]]))
"""


class Served(threading.Thread):
    """A server of the host's: says who it is, or all that it was told where that begins so."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._server.getsockname()[1]
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._one, args=(client,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self.join()
        self._server.close()

    @staticmethod
    def _one(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            data = client.recv(65536)
            if b" HTTP/1.1\r\n" in data:
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nthe host")
                return
            while data.startswith(b"all\n") and (more := client.recv(1 << 20)):
                data += more
            client.sendall(data if data.startswith(b"all\n") else b"the host")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with contextlib.closing(Served()) as found:
        yield found


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    made = Pipeline(Manager())
    yield made
    made.manager.close()


@pytest.fixture
def machine(pipeline: Pipeline, served: Served) -> Iterator[Any]:
    """Makes machines of these rules, whose names are served by the host."""
    backend = pipeline.manager.backend("qemu")
    found = backend.probe()
    if not found.usable:
        pytest.skip("; ".join(blocker.what for blocker in found.blockers))
    service = EmbeddedService(pipeline, WHO)
    names = ("db.internal", "web.internal", "plain.internal")
    hosts = tuple(StaticHost(name, "127.0.0.1", served.port) for name in names)
    made = []

    def make(snapshot: Any = None, **options: Any) -> Sandbox:
        wanted = {"backend": "qemu", "net": RULES, "memory": "96M", **options}
        spec = build.sandbox_spec(**wanted)
        if snapshot is not None:
            spec = build.restored_spec(snapshot.spec)
        spec = msgspec.structs.replace(spec, egress_bounds=EgressBounds(hosts=hosts))
        made.append(Sandbox(service, service.adopt(pipeline.open(WHO, spec, snapshot))))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.close()


def tries(box: Sandbox, *lines: str) -> list[Any]:
    done = box.run(["python3", "-c", TRIES, *lines], check=True, timeout=300 * SLOWER)
    found: list[Any] = json.loads(done.stdout)
    return found


def test_what_rules_name_is_reached_and_nothing_else(machine: Any) -> None:
    box = machine()
    control = box.enforcement["network"]
    assert (control.asked, control.enforced) == ("restricted", True)
    assert (
        control.detail == "no network card, and by the host's relay db.internal:* web.internal:443"
    )
    right, wrong = client_hello("web.internal"), client_hello("db.internal")
    found = tries(
        box,
        "said('db.internal', 5432)",
        "whole('db.internal', 5432, 300_000)",
        f"said('web.internal', 443, {right!r})",
        f"said('web.internal', 443, {wrong!r})",
        "said('web.internal', 80)[:12]",
        "said('other.internal', 5432)",
        "said('8.8.8.8', 443)",
        "said('2001:db8::1', 443)",
        "said('169.254.169.254', 80)",
        "udp('db.internal', 443)",
        "udp('1.1.1.1', 443)",
        "said('127.0.0.1', 8080)",
        "sorted(name for _, name in socket.if_nameindex())",
        "socket.getaddrinfo('db.internal', 1, 2, 1, 0, socket.AI_ADDRCONFIG)[0][4][0][:7]",
    )
    assert found.pop() == "198.18."
    assert found[:3] == ["the host", 300_004, "the host"]
    assert found[3:5] == ["ECONNRESET", "HTTP/1.1 403"]
    assert found[5] == "unknown"
    assert set(found[6:9]) <= {"ECONNRESET", "EPIPE", "closed"}
    assert found[9:] == ["ECONNREFUSED"] * 3 + [["lo"]]
    rows = box.network.connections().connections
    refused = {(row.name or row.address, row.port) for row in rows if not row.allowed}
    assert refused >= {("other.internal", None), ("8.8.8.8", 443), ("web.internal", 80)}
    assert {row.reason for row in rows if row.name == "web.internal" and row.port == 443} >= {
        "it dialled web.internal and asks for db.internal"
    }

    # Others from now on, also for what is open.
    box.network.set(["web.internal:443"])
    assert tries(box, DIALS) == ["unknown"]
    box.network.set(RULES)

    # Nothing is let through while there is no relay, and the next one knows its names.
    relay = keeper.shared()
    before = relay.pid
    os.kill(before, signal.SIGKILL)
    assert tries(box, DIALS) == ["the host"]
    assert relay.pid not in (0, before)

    box.pause()
    box.resume()
    assert tries(box, DIALS) == ["the host"]


def test_copies_go_on_by_themselves_and_root_gets_no_further(machine: Any) -> None:
    box = machine(user="root", net=READ)
    assert f"SSL_CERT_FILE={BUNDLE}\n" in box.run("env", check=True).text
    with box.snapshot() as kept:
        assert tries(box, DIALS) == ["the host"]
        again = machine(kept)
    assert tries(again, DIALS) == ["the host"]
    assert again.network.connections().hosts == {"db.internal": 1}
    # What is asked is judged; each has an authority of its own, whatever memory it began with.
    requests = ["asked('GET', '/v1/x')", "asked('POST', '/v1/x')", "asked('GET', '/v2/x')"]
    assert tries(again, *requests) == ["HTTP/1.1 200 OK", *["HTTP/1.1 403 Forbidden"] * 2]
    one, other = (each.run(["cat", BUNDLE], check=True).text for each in (box, again))
    assert one.count("BEGIN CERTIFICATE") == other.count("BEGIN CERTIFICATE") == 1
    assert one != other
    # Whoever ends the front end has no other way out, and it comes again; with the agent as well.
    again.run("kill -9 $(pidof agentd-network)")
    assert tries(again, COMES) == ["the host"]
    again.run("kill -9 $PPID; sleep 100")
    assert tries(again, COMES) == ["the host"]
    # Root of the guest's kernel opens streams itself, and is judged as if he had dialled.
    found = tries(again, "stream(1019, (8, 8, 8, 8), 443)", "stream(22, (8, 8, 8, 8), 443)")
    assert set(found) <= {"closed", "ECONNRESET"}
    rows = again.network.connections().connections
    assert [row.allowed for row in rows if row.address == "8.8.8.8"] == [False]
    # A copy in which nothing is read trusts nobody's authority, its source's either.
    again.network.set(RULES)
    with again.snapshot() as kept:
        last = machine(kept)
    assert tries(last, DIALS) == ["the host"]
    assert "BEGIN CERTIFICATE" not in last.run(["cat", BUNDLE], check=True).text
    assert "SSL_CERT_FILE" not in last.run("env", check=True).text
