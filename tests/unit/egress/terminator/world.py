"""A program whose requests are judged, and a host that it talks to, byte by byte."""

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.captured import Captured, Served, relayed
from tests.unit.capability.fetch.authority import Authority as HostAuthority

from agentd.egress import authority
from agentd.egress.compile import compile_table
from agentd.egress.keeper import RelayKeeper
from agentd.egress.terminating import Reading
from agentd.model.egress import EgressBounds, StaticHost

if TYPE_CHECKING:
    from agentd.egress.admitted import Admitted

HOST = "api.example.com"
CLIENT = """
import ssl
CA = {ca!r}
def begin(host={host!r}, port=443, ca=None):
    sock = socket.create_connection((resolve(host)[1], port), 60)
    if port == 443:
        context = ssl.create_default_context(cadata=ca or CA)
        context.set_alpn_protocols(["h2", "http/1.1"])
        sock = context.wrap_socket(sock, server_hostname=host)
    sock.settimeout(60)
    kept.append(sock)
    return len(kept) - 1
def say(n, data):
    kept[n].sendall(data.encode("latin-1"))
def hear(n, count):
    found = b""
    while len(found) < count and (part := kept[n].recv(min(65536, count - len(found)))):
        found += part
    return found.decode("latin-1")
def until(n, end):
    found = b""
    while not found.endswith(end.encode()) and (part := kept[n].recv(1)):
        found += part
    return found.decode("latin-1")
def rest(n):
    found = b""
    while part := kept[n].recv(65536):
        found += part
    return found.decode("latin-1")
def once(said, host={host!r}, port=443):
    n = begin(host, port)
    say(n, said)
    with kept[n]:
        return rest(n)
def trusts(ca, host={host!r}):
    try:
        begin(host, 443, ca)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    return ""
"""

Serve = Callable[[socket.socket], None]


class JudgedProgram:
    """``serve`` is given each connection to the host, without its TLS; ``heard`` keeps what those
    that use ``read_head`` of it were asked."""

    def __init__(
        self,
        keeper: RelayKeeper,
        host: HostAuthority,
        serve: Serve,
        plain: bool = False,
        streams: bool = False,
    ) -> None:
        self.host, self.keeper = host, keeper
        self._serve, self._plain = serve, plain
        self.served = Served(self._one)
        self.program = Captured(streams=streams)
        self.own = authority.make([HOST])
        self.admitted: Admitted | None = None

    def table(self, *rules: str) -> dict[str, Any]:
        names = (HOST, "other.example.com", "far.example.com")
        static = (StaticHost(name, "127.0.0.1", self.served.port) for name in names)
        return compile_table(rules, EgressBounds(hosts=tuple(static)))

    def admit(self, *rules: str) -> None:
        self.admitted = self.keeper.admit(
            self.program.sockets, self.table(*rules), Reading(self.own)
        )
        code = CLIENT.format(ca=self.own.certificate, host=HOST)
        self.program.ask(f"exec({code!r}, globals())")

    def ask(self, line: str) -> Any:
        return self.program.ask(line)

    def rows(self) -> list[dict[str, Any]]:
        assert self.admitted is not None
        return self.admitted.connections().rows

    def requests(self) -> list[dict[str, Any]]:
        return [row for row in self.rows() if "method" in row]

    def close(self) -> None:
        if self.admitted is not None:
            self.admitted.close()
        self.program.close()
        self.served.close()

    def _one(self, sock: socket.socket) -> None:
        if self._plain:
            self._serve(sock)
            return
        with contextlib.suppress(ssl.SSLError), self.host.server.wrap_socket(sock, True) as tls:
            self._serve(tls)


class Judging:
    """A keeper and a host's authority, for programs one after the other."""

    def __init__(self, keeper: RelayKeeper, host: HostAuthority) -> None:
        self.keeper, self.host = keeper, host

    @contextlib.contextmanager
    def program(
        self,
        serve: Serve,
        rules: Sequence[str],
        *,
        plain: bool = False,
        streams: bool = False,
        names: Sequence[str] = (HOST, "other.example.com", "far.example.com"),
    ) -> Iterator[JudgedProgram]:
        """``names`` are those of the program's authority; with ``streams`` it is a machine's."""
        made = JudgedProgram(self.keeper, self.host, serve, plain, streams)
        made.own = authority.make(names)
        try:
            made.admit(*rules)
            yield made
        finally:
            made.close()


@contextlib.contextmanager
def judging(folder: Path) -> Iterator[Judging]:
    host = HostAuthority(folder, [HOST, "other.example.com"], [])
    with relayed() as (keeper, _):
        keeper.terminating.ca_file = host.ca
        made = Judging(keeper, host)
        with made.program(lambda _: None, ["read " + HOST]):
            yield made


def read_head(sock: socket.socket) -> bytes:
    """A head with its end, or what came before the end of all."""
    found = b""
    while not found.endswith(b"\r\n\r\n") and (part := sock.recv(1)):
        found += part
    return found
