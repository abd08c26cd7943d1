"""Connections whose requests are judged beside those that are passed on: a first byte, a stream.

A program in a network namespace of its own asks a server of this machine's over TLS, by one relay
and one terminator; each request is a connection of its own.
"""

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from cases import Contender, Work, interleave
from client_process import ClientProcess
from stats import Case, Target

PASSED, READ = "passed on", "judged"
_NAME = "bench.internal"
_STREAM = 256 << 20
_SECONDS = 60

_SERVER = f"""
import socket, ssl, sys, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
print(listener.getsockname()[1], flush=True)
chunk = bytes(1 << 20)
while True:
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        with context.wrap_socket(sock, server_side=True) as tls:
            head = b""
            while not head.endswith(b"\\r\\n\\r\\n"):
                head += tls.recv(4096)
            size = {_STREAM} if b"/stream" in head else 1
            tls.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n"
                        + b"Content-Length: %d\\r\\n\\r\\n" % size)
            while size > 0:
                tls.sendall(chunk[:size])
                size -= len(chunk)
    except OSError:
        pass
"""
# Measures what it is told, a line each: "first" or "stream".
_CLIENT = f"""
import os, socket, ssl, struct, sys, time
host = socket.socket(fileno=int(sys.argv[2]))
context = ssl.create_default_context(cafile=sys.argv[1])
from agentd.linux import abi, anyip, net
from agentd.linux.kernel import KERNEL
KERNEL.unshare(abi.CLONE_NEWNET | (abi.CLONE_NEWUSER if os.geteuid() else 0))
net.loopback_up()
made = anyip.capture()
socket.send_fds(host, [b"x"], [sock.fileno() for sock in made])
for sock in made:
    sock.close()
def resolve():
    labels = b"".join(bytes((len(l),)) + l.encode() for l in "{_NAME}".split("."))
    query = struct.pack(">6H", 7, 256, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.53", 53))
        sock.send(query)
        return socket.inet_ntoa(sock.recv(512)[-4:])
address = None
for line in sys.stdin:
    what = line.strip()
    address = address or resolve()
    begun = time.perf_counter()
    sock = socket.create_connection((address, 443))
    with context.wrap_socket(sock, server_hostname="{_NAME}") as tls:
        tls.sendall(b"GET /%s HTTP/1.1\\r\\nHost: {_NAME}\\r\\n\\r\\n" % what.encode())
        buffer = bytearray(1 << 18)
        left = {_STREAM} if what == "stream" else 0
        tls.recv(1)
        took = (time.perf_counter() - begun) * 1000
        begun = time.perf_counter()
        while left > 0 and (count := tls.recv_into(buffer)):
            left -= count
        if what == "stream":
            took = {_STREAM} / (time.perf_counter() - begun) / 1e6
    print(took, flush=True)
"""


def reading(rounds: int) -> list[Case]:
    first = Case(
        "net-read-first", "connect, TLS, a request, and the first byte of its answer", "ms"
    )
    stream = Case("net-read-stream", "one answer over TLS", "MB/s")
    with ExitStack() as stack:
        clients = _clients(stack)
        interleave(first, {each: _asking(clients[each], "first") for each in clients}, rounds, 60)
        # What interleave counts is no time where more is better: the rounds end that.
        many = {each: _asking(clients[each], "stream") for each in clients}
        interleave(stream, many, max(5, rounds // 5), _SECONDS * 1000)
    passed, read = first.median(PASSED), first.median(READ)
    more = None if passed is None or read is None else read - passed
    first.targets = [Target("at most 2 ms more", more, 2)]
    stream.targets = [Target("at least 300 MB/s", stream.median(READ), 300, at_least=True)]
    return [first, stream]


def _clients(stack: ExitStack) -> "dict[str, ClientProcess]":
    from cryptography.hazmat.primitives import serialization

    from agentd.egress import authority
    from agentd.egress.compile import compile_table
    from agentd.egress.keeper import RelayKeeper
    from agentd.egress.terminating import Reading
    from agentd.egress.terminator.certificates import LeafIssuer
    from agentd.model.egress import EgressBounds, StaticHost

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentd-bench-")))
    folder.chmod(0o755)
    host, own = authority.make([_NAME]), authority.make([_NAME])
    (folder / "host.pem").write_text(host.certificate)
    (folder / "own.pem").write_text(own.certificate)
    certificate, key = LeafIssuer(host.key, host.certificate).pair(_NAME)
    pem = serialization.Encoding.PEM
    kind, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pair = certificate.public_bytes(pem) + key.private_bytes(pem, kind, none)
    (folder / "pair.pem").write_bytes(pair)
    argv = [sys.executable, "-c", _SERVER, str(folder / "pair.pem")]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    stack.callback(server.communicate)
    stack.callback(server.kill)
    assert server.stdout
    bounds = EgressBounds(hosts=(StaticHost(_NAME, "127.0.0.1", int(server.stdout.readline())),))
    keeper = RelayKeeper()
    stack.callback(keeper.close)
    keeper.terminating.ca_file = str(folder / "host.pem")
    found = {}
    for label, rule, roots in (
        (PASSED, _NAME, folder / "host.pem"),
        (READ, f"{_NAME}/**", folder / "own.pem"),
    ):
        client = ClientProcess(stack, _CLIENT, str(roots))
        admitted = keeper.admit(client.sockets, compile_table([rule], bounds), Reading(own))
        stack.callback(admitted.close)
        found[label] = client
    return found


def _asking(client: ClientProcess, what: str) -> Contender:
    def prepare(_stack: ExitStack) -> Work:
        return lambda: client.measure(what)

    return prepare
