"""The restricted network beside the host's own loopback and slirp4netns: connections, bytes, names.

All of them reach the same server of this machine's. What the relay costs is measured without the
walls around a sandbox: a program in a network namespace of its own, whose sockets the relay has.
"""

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from cases import Contender, Work, interleave, sandbox_class
from client_process import ClientProcess
from peers import PATH, Absent
from stats import Case, Row, Target

HOST, RELAY, SLIRP = "host loopback", "agentd relay", "slirp4netns"
_NAME = "bench.internal"
_STREAM = 256 << 20
_CONNECTIONS = 200
_SECONDS = 60
_KB = 1000

# One connection after another: "1" is answered by a byte, "s" by a stream.
_SERVER = f"""
import socket
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
print(listener.getsockname()[1], flush=True)
chunk = bytes(1 << 20)
while True:
    sock, _ = listener.accept()
    try:
        if sock.recv(1) == b"s":
            for _ in range({_STREAM} >> 20):
                sock.sendall(chunk)
        else:
            sock.sendall(b"x")
    except OSError:
        pass
    sock.close()
"""
# Measures what it is told, a line each: "first", "stream", "connections" or "name".
_CLIENT = f"""
import os, socket, struct, sys, time
how, fd = sys.argv[1], int(sys.argv[2])
host = socket.socket(fileno=fd)
if how != "plain":
    from agentd.linux import abi, anyip, net
    from agentd.linux.kernel import KERNEL
    KERNEL.unshare(abi.CLONE_NEWNET | (abi.CLONE_NEWUSER if os.geteuid() else 0))
    net.loopback_up()
if how == "captured":
    made = anyip.capture()
    socket.send_fds(host, [b"x"], [sock.fileno() for sock in made])
    for sock in made:
        sock.close()
else:
    host.send(b"x")
place = None
def first():
    begun = time.perf_counter()
    with socket.create_connection(place) as sock:
        sock.sendall(b"1")
        sock.recv(1)
        return (time.perf_counter() - begun) * 1000
def stream():
    with socket.create_connection(place) as sock:
        buffer = bytearray(1 << 20)
        sock.sendall(b"s")
        begun, left = time.perf_counter(), {_STREAM}
        while left:
            left -= sock.recv_into(buffer)
        return {_STREAM} * 8 / (time.perf_counter() - begun) / 1e9
def connections():
    begun = time.perf_counter()
    for _ in range({_CONNECTIONS}):
        with socket.create_connection(place) as sock:
            sock.sendall(b"1")
            sock.recv(1)
    return {_CONNECTIONS} / (time.perf_counter() - begun)
def name():
    labels = b"".join(bytes((len(l),)) + l.encode() for l in "{_NAME}".split("."))
    query = struct.pack(">6H", 7, 256, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.53", 53))
        begun = time.perf_counter()
        sock.send(query)
        answer = sock.recv(512)
        took = (time.perf_counter() - begun) * 1000
    global found
    found = socket.inet_ntoa(answer[-4:])
    return took
for line in sys.stdin:
    what, address, port = line.split()
    if how == "captured" and place is None:
        name()
        address = found
    place = place or (address, int(port))
    print(globals()[what](), flush=True)
"""


def egress(rounds: int, sandboxes: int) -> list[Case]:
    """``sandboxes`` idle ones are counted in the relay's memory."""
    return [_fresh(rounds), *_paths(rounds), _idle(sandboxes)]


def _fresh(rounds: int) -> Case:
    case = Case("net-fresh", "a fresh sandbox with a restricted network, one command, gone", "ms")
    case.note = "the relay is up; rows: without a network, with one of rules"
    contenders: dict[str, Contender] = {"agentd": _sandbox(), "agentd --net pypi": _sandbox("pypi")}
    interleave(case, contenders, rounds, _SECONDS)
    plain, ruled = case.median("agentd"), case.median("agentd --net pypi")
    more = None if plain is None or ruled is None else ruled - plain
    case.targets = [Target("at most 0.5 ms more", more, 0.5)]
    return case


def _sandbox(*net: str) -> Contender:
    def prepare(stack: ExitStack) -> Work:
        create = sandbox_class().create
        given = {"net": list(net)} if net else {}
        # The relay ends with the last of its sandboxes.
        stack.enter_context(create(backend="linux", embedded=True, **given))

        def work() -> None:
            with create(backend="linux", embedded=True, **given) as made:
                made.run(["true"], check=True)

        return work

    return prepare


def _paths(rounds: int) -> list[Case]:
    """Each contender is one process for all of these, and one server is everybody's."""
    first = Case("net-first", "connect, and one byte back", "ms")
    stream = Case("net-stream", "one stream to the sandbox", "Gbit/s")
    many = Case("net-connections", "connections one after another, a byte each", "1/s")
    name = Case("net-name", "a name that is known, asked for by DNS", "ms")
    with ExitStack() as stack:
        port = _server(stack)
        starts = {HOST: _plain, RELAY: _captured, SLIRP: _slirp}
        clients: dict[str, _Client | Exception] = {}
        for label, start in starts.items():
            try:
                clients[label] = start(stack, port)
            except Exception as why:
                clients[label] = why
        for case, what, share in (
            (first, "first", 1),
            (stream, "stream", 5),
            (many, "connections", 2),
        ):
            # What interleave counts is no time where more is better: the rounds end that.
            budget = _SECONDS if case.unit == "ms" else _SECONDS * 1000
            contenders = {each: _asking(clients[each], what) for each in starts}
            interleave(case, contenders, max(5, rounds // share), budget)
        interleave(name, {RELAY: _asking(clients[RELAY], "name")}, rounds, _SECONDS)
    own, relayed = first.median(HOST), first.median(RELAY)
    more = None if own is None or relayed is None else relayed - own
    first.targets = [Target("at most 0.5 ms over the host's loopback", more, 0.5)]
    stream.targets = [
        Target("at least 0.4x the host's loopback", stream.ratio(RELAY, HOST), 0.4, at_least=True),
        Target("at least 4x slirp4netns", stream.ratio(RELAY, SLIRP), 4, at_least=True),
    ]
    share = many.ratio(RELAY, HOST)
    many.targets = [Target("at least 0.2x the host's loopback", share, 0.2, at_least=True)]
    name.targets = [Target("at most 0.3 ms", name.median(RELAY), 0.3)]
    return [first, stream, many, name]


def _idle(count: int) -> Case:
    """Sandboxes as the relay sees them: four sockets each, and the same rules."""
    from agentd.egress.compile import compile_table
    from agentd.egress.keeper import RelayKeeper

    case = Case("net-idle", f"{count} idle sandboxes in one relay, its memory each", "kB")
    case.note = "the relay's RSS, after less before"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
    keeper = RelayKeeper()
    table = compile_table(["pypi", "github"])
    try:
        keeper.admit(_four_sockets(), table)
        before = _rss(keeper.pid)
        for _ in range(count):
            last = keeper.admit(_four_sockets(), table)
        _reach(last.sockets[0].getsockname()[:2])
        each = (_rss(keeper.pid) - before) / count / _KB
        case.rows = [Row(RELAY, "", [each])]
        case.targets = [Target("at most 20 kB", each, 20)]
    except OSError as why:
        case.skipped[RELAY] = str(why)
    finally:
        keeper.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return case


def _reach(place: tuple[str, int]) -> None:
    """Return once the relay serves that listener: it refuses what nothing redirected to it."""
    with socket.create_connection(place) as sock, contextlib.suppress(ConnectionResetError):
        sock.recv(1)


def _four_sockets() -> list[socket.socket]:
    made = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            sock = socket.socket(family, kind)
            sock.bind((address, 0))
            if kind == socket.SOCK_STREAM:
                sock.listen()
            made.append(sock)
    return made


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Client(ClientProcess):
    def __init__(self, stack: ExitStack, how: str, place: tuple[str, int]) -> None:
        super().__init__(stack, _CLIENT, how)
        self._place = place

    def measure(self, what: str) -> float:
        return super().measure(f"{what} {self._place[0]} {self._place[1]}")


def _asking(client: _Client | Exception, what: str) -> Contender:
    def prepare(_stack: ExitStack) -> Work:
        if isinstance(client, Exception):
            raise client
        return lambda: client.measure(what)

    return prepare


def _server(stack: ExitStack) -> int:
    server = subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True)
    stack.callback(server.communicate)
    stack.callback(server.kill)
    assert server.stdout
    return int(server.stdout.readline())


def _plain(stack: ExitStack, port: int) -> _Client:
    return _Client(stack, "plain", ("127.0.0.1", port))


def _captured(stack: ExitStack, port: int) -> _Client:
    from agentd.egress.compile import compile_table
    from agentd.egress.keeper import RelayKeeper
    from agentd.model.egress import EgressBounds, StaticHost

    keeper = RelayKeeper()
    stack.callback(keeper.close)
    client = _Client(stack, "captured", (_NAME, port))
    hosts = (StaticHost(_NAME, "127.0.0.1", port),)
    keeper.admit(client.sockets, compile_table([f"{_NAME}:*"], EgressBounds(hosts=hosts)))
    return client


def _slirp(stack: ExitStack, port: int) -> _Client:
    program = shutil.which("slirp4netns", path=PATH)
    if program is None:
        raise Absent("slirp4netns is not installed")
    client = _Client(stack, "own", ("10.0.2.2", port))
    ready, told = os.pipe()
    argv = [program, "--configure", f"--ready-fd={told}", str(client.pid), "tap0"]
    slirp = subprocess.Popen(
        argv,
        pass_fds=[told],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(slirp.communicate)
    stack.callback(slirp.kill)
    os.close(told)
    with os.fdopen(ready, "rb") as file:
        if file.read(1) != b"1":
            raise Absent("slirp4netns does not start here: it needs /dev/net/tun")
    return client
