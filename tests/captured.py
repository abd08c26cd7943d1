"""A program in a network namespace of its own, whose sockets this process holds: what a sandbox is
to the relay, without its walls. Any user may make one who may make user namespaces."""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentd.egress import keeper
from agentd.egress.hostnames import HostNames
from agentd.egress.relay import dns
from agentd.linux import anyip, rights
from agentd.testing.patience import SLOWER

# It hands its sockets over, and then does what it is told, a line of Python each: an expression
# whose value is JSON, or an error's number.
_INSIDE = """
import json, os, socket, struct, sys
from time import sleep
from functools import partial
from agentd.linux import abi, anyip, net, veth
from agentd.linux.kernel import KERNEL
KERNEL.unshare(abi.CLONE_NEWNET | (abi.CLONE_NEWUSER if os.geteuid() else 0))
net.loopback_up()
host = socket.socket(fileno=int(sys.argv[1]))
if "device" in sys.argv[2:]:
    # As behind gVisor: a device leads to the sockets, and packets may be written at it.
    exec(sys.argv[3])
    made = veth.capture()
else:
    made = anyip.capture()
if len(sys.argv) == 3:
    # The front end of a machine, whose way to the host is a unix socket here.
    from agentd.guest import vm_streams
    from agentd.linux import process as abi_process
    from agentd.guest.loop import Loop
    def dial():
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        sock.connect(sys.argv[2])
        return sock
    host.close()
    if os.fork() == 0:
        abi_process.set_pdeathsig(9)
        os.close(0), os.close(1)
        loop = Loop()
        vm_streams.Front(loop, made, dial)
        loop.run()
else:
    socket.send_fds(host, [b"x"], [sock.fileno() for sock in made])
for sock in made:
    sock.close()
kept = []
def query(name, kind=1, number=77):
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    head = struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0)
    return head + labels + struct.pack(">BHH", 0, kind, 1)
def ask(message, server="9.9.9.9"):
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        sock.connect((server, 53))
        sock.send(message)
        return sock.recv(4096)
def resolve(name, kind=1, server="9.9.9.9"):
    sent = query(name, kind)
    answer = ask(sent, server)
    found = answer[len(sent) + 12:]
    family = socket.AF_INET6 if len(found) == 16 else socket.AF_INET
    return answer[3] & 15, socket.inet_ntop(family, found) if found else ""
def dial(host, port):
    if not host[0].isdigit() and ":" not in host:
        host = resolve(host)[1] or "0.0.0.0"
    return socket.create_connection((host, port), 30)
def talk(host, port, said=b"", more=4096):
    with dial(host, port) as sock:
        for part in said if isinstance(said, list) else [said]:
            if part:
                sock.sendall(part)
        return sock.recv(more).decode("latin-1")
def whole(host, port, said=b""):
    with dial(host, port) as sock:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        found = b""
        while part := sock.recv(65536):
            found += part
        return found.decode("latin-1")
def keep(host, port):
    kept.append(dial(host, port))
    return len(kept) - 1
def attempt(what, *args):
    try:
        return what(*args)
    except OSError as error:
        return error.errno
for line in sys.stdin:
    answer = attempt(eval, line)
    print(json.dumps(answer, default=lambda said: said.decode("latin-1")), flush=True)
"""


class Captured:
    """``sockets`` are the host's end, to be given to a keeper: those of the namespace, or with
    ``streams`` a listener at which the front end of a machine arrives, with ``device`` those at the
    other end of a device, before which is run what ``device`` says."""

    def __init__(self, *, streams: bool = False, device: str | None = None) -> None:
        self.streams = streams
        host, theirs = socket.socketpair()
        self._folder = tempfile.TemporaryDirectory(prefix="captured-") if streams else None
        way = [] if self._folder is None else [f"{self._folder.name}/host"]
        more = [] if device is None else ["device", device]
        listener = socket.socket(socket.AF_UNIX)
        if way:
            listener.bind(way[0])
            listener.listen(128)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _INSIDE, str(theirs.fileno()), *way, *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[theirs.fileno()],
            env={"PYTHONPATH": str(Path(anyip.__file__).parents[2])},
        )
        theirs.close()
        if way:
            assert not host.recv(1)  # it serves
            host.close()
            self.sockets = [listener]
            return
        listener.close()
        with host:
            _, fds, _ = rights.receive(host, 10, 8)
        self.sockets = [socket.socket(fileno=fd) for fd in fds]

    def ask(self, line: str) -> Any:
        """The value of an expression in there; of an OSError its errno."""
        self.begin(line)
        return self.answer()

    def begin(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait()
        if self._folder is not None:
            self._folder.cleanup()


class Names(threading.Thread):
    """A name server of the host's, on a port of its own; ``asked`` has what reached it.

    ``answers`` gives the addresses of a name, or a function that gives them; what is not there does
    not exist.
    """

    PORT = 0  # any

    def __init__(self, **answers: Any) -> None:
        super().__init__(daemon=True)
        self.answers = {name.replace("_", "."): found for name, found in answers.items()}
        self.asked: list[tuple[str, int]] = []
        self.ttl = 60
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", self.PORT))
        self.port = self._sock.getsockname()[1]
        self.place = ("", 0)  # who asked last
        self.start()

    def read(self) -> HostNames:
        return HostNames((("127.0.0.1", 0, self.port),), {})

    def changed(self) -> bool:
        return False

    def run(self) -> None:
        while True:
            message, self.place = self._sock.recvfrom(4096)
            if not message:
                return
            self.send(self.reply(message), self.place)

    def send(self, message: bytes, place: tuple[str, int]) -> None:
        self._sock.sendto(message, place)

    def reply(self, message: bytes) -> bytes:
        asked = dns.parse_query(message)
        self.asked.append((asked.name, asked.kind))
        name = asked.name
        while name and name not in self.answers:  # a name answers for those below it, too
            name = name.partition(".")[2]
        found = self.answers.get(name)
        if found is None:
            return dns.answer(asked, dns.NXDOMAIN)
        addresses = found() if callable(found) else found
        family = socket.AF_INET if asked.kind == dns.A else socket.AF_INET6
        packed = [
            socket.inet_pton(family, address)
            for address in addresses
            if (":" in address) == (family == socket.AF_INET6)
        ]
        answer = dns.answer(asked, dns.NOERROR, packed[0] if packed else b"", self.ttl)
        for more in packed[1:]:
            answer += answer[-len(more) - 12 : -len(more)] + more
        return answer[:6] + len(packed).to_bytes(2, "big") + answer[8:]

    def close(self) -> None:
        self._sock.sendto(b"", self._sock.getsockname())
        self.join()
        self._sock.close()


class Served:
    """A server of the host's on 127.0.0.1: each connection is given to ``serve``, in a thread."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self._serve = serve
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self._closing:
                sock.close()
                return
            thread = threading.Thread(target=self._one, args=(sock,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _one(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            self._serve(sock)

    def close(self) -> None:
        self._closing = True
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._accepting.join()
        self._listener.close()
        for thread in self._threads:
            thread.join(30)


def eventually(holds: Callable[[], Any]) -> None:
    """Raises AssertionError where it does not hold within three minutes."""
    waited = threading.Event()
    for _ in range(int(3600 * SLOWER)):
        if holds():
            return
        waited.wait(0.05)
    raise AssertionError("it was awaited in vain")


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


@contextlib.contextmanager
def relayed(**answers: Any) -> Iterator[tuple[keeper.RelayKeeper, Names]]:
    """A keeper whose relay asks a name server that knows ``answers``."""
    names = Names(**answers)
    kept = keeper.RelayKeeper(files=names)  # type: ignore[arg-type]
    try:
        kept.begin()
        yield kept, names
    finally:
        kept.close()
        names.close()
