"""Resolves names by the host's own name servers, without blocking; a cache for all sandboxes.

Against forged answers: each query has a socket, and so a port, of its own, a random number and
random capitals (0x20), all of which the answer must have; what does not fit is not looked at.
"""

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from agentd.egress.relay import dns
from agentd.egress.relay.loop import BOTH, IN, EventLoop, Later

#: Seconds that an answer is held for, and that its lack is.
MIN_TTL, MAX_TTL, NEGATIVE_TTL = 1, 30, 5
_MAX_CACHED = 8192
#: Names that are asked for at once, and those of one sandbox: it can have connections ask and end,
#: of which the questions go on.
MAX_PENDING, MAX_PENDING_OF_ONE = 512, 128
_MAX_ALIASES = 8
_MAX_SERVERS = 3  # resolv.conf(5)
_TRIES = 3  # a server
_PATIENCE = (1.0, 2.0, 2.0)  # seconds that the first, the second ... round waits
_TCP_SECONDS = 5.0


class Resolved(NamedTuple):
    """``code`` is dns.NOERROR, NXDOMAIN or SERVFAIL; ``until`` by the loop's clock."""

    code: int
    addresses: tuple[str, ...]
    until: float


class Upstream(NamedTuple):
    address: str
    scope: int = 0  # the index of the interface of a link-local address
    port: int = 53


Done = Callable[[Resolved], None]


class Resolver:
    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.servers: tuple[Upstream, ...] = ()
        self._hosts: dict[str, tuple[str, ...]] = {}
        self._cache: dict[tuple[str, int], Resolved] = {}
        self._pending: dict[tuple[str, int], _Exchange] = {}
        self._of: Counter[int] = Counter()  # how many of them are whose

    def configure(self, servers: Sequence[Upstream], hosts: dict[str, tuple[str, ...]]) -> None:
        """Take what resolv.conf and /etc/hosts of the host say, now and from now on."""
        self.servers = tuple(servers)[:_MAX_SERVERS]
        self._hosts = hosts
        self._cache.clear()

    def known(self, name: str, kind: int) -> Resolved | None:
        """Return what can be said without asking anybody."""
        own = self._hosts.get(name)
        if own is not None:
            v6 = kind == dns.AAAA
            found = tuple(address for address in own if (":" in address) == v6)
            return Resolved(dns.NOERROR, found, self.loop.now + MAX_TTL)
        cached = self._cache.get((name, kind))
        if cached is not None and cached.until > self.loop.now:
            return cached
        return None

    def ask(self, name: str, kind: int, done: Done) -> None:
        """Ask the host's servers, and then call ``done``, once and not within this call. Who asks
        for the same meanwhile is told the same."""
        key = name, kind
        pending = self._pending.get(key)
        if pending is not None:
            pending.waiting.append((done, self.loop.owner))
            return
        full = len(self._pending) >= MAX_PENDING or self._of[self.loop.owner] >= MAX_PENDING_OF_ONE
        if full or not self.servers:
            failed = Resolved(dns.SERVFAIL, (), self.loop.now)
            self.loop.soon(lambda: done(failed))
            return
        exchange = self._pending[key] = _Exchange(self, name, kind, done)
        self._of[exchange.owner] += 1
        exchange.start()

    def finish(self, exchange: "_Exchange", code: int, addresses: Sequence[str], ttl: int) -> None:
        key = exchange.asked, exchange.kind
        self._pending.pop(key, None)
        self._of[exchange.owner] -= 1
        self._of += Counter()  # only those that have some
        seconds = max(ttl, MIN_TTL) if addresses else NEGATIVE_TTL
        found = Resolved(code, tuple(addresses), self.loop.now + seconds)
        if code != dns.SERVFAIL:
            self._cache.pop(key, None)
            self._cache[key] = found
            while len(self._cache) > _MAX_CACHED:
                del self._cache[next(iter(self._cache))]  # the oldest
        for done, owner in exchange.waiting:
            self.loop.soon(partial(done, found), owner=owner)


class _Exchange:
    """One name and kind, asked of one server after the other."""

    __slots__ = (
        "_aliases", "_got", "_resolver", "_sent", "_sock", "_tcp", "_timer", "_told", "_tried",
        "_ttl", "asked", "kind", "name", "owner", "waiting",
    )  # fmt: skip

    def __init__(self, resolver: Resolver, name: str, kind: int, done: Done) -> None:
        self._resolver = resolver
        self.asked, self.name, self.kind = name, name, kind
        self.owner = resolver.loop.owner
        self.waiting = [(done, self.owner)]
        self._aliases = 0
        self._tried = 0
        self._ttl = MAX_TTL
        self._sock: socket.socket | None = None
        self._timer: Later | None = None
        self._sent = b""
        self._got = b""
        self._told = False
        self._tcp = False

    def start(self) -> None:
        self._next()

    def _next(self) -> None:
        """Send it to the server whose turn it is."""
        self._close()
        servers = self._resolver.servers
        if not servers or self._tried >= _TRIES * len(servers):
            self._resolver.finish(self, dns.SERVFAIL, (), 0)
            return
        turn, at = divmod(self._tried, len(servers))
        self._tried += 1
        labels = self.name.encode("latin-1").split(b".")
        if any(not 0 < len(label) <= dns.MAX_LABEL for label in labels):
            self._resolver.finish(self, dns.SERVFAIL, (), 0)
            return
        mixed = [_mix(label) for label in labels]
        self._sent = dns.query(int.from_bytes(os.urandom(2), "big"), mixed, self.kind)
        self._open(servers[at], socket.SOCK_DGRAM, _PATIENCE[min(turn, len(_PATIENCE) - 1)])

    def _open(self, server: Upstream, kind: int, seconds: float) -> None:
        loop = self._resolver.loop
        self._tcp = kind == socket.SOCK_STREAM
        self._timer = loop.later(seconds, self._next)
        v6 = ":" in server.address
        family = socket.AF_INET6 if v6 else socket.AF_INET
        try:
            self._sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            loop.watch(self._sock.fileno(), BOTH if self._tcp else IN, self._event)
            with contextlib.suppress(BlockingIOError):
                place = (server.address, server.port)
                self._sock.connect((*place, 0, server.scope) if v6 else place)
            if not self._tcp:
                self._sock.send(self._sent)
        except OSError:
            # Not at once: the next one may fail as soon, and whoever asks awaits a later call.
            self._close()
            self._timer = loop.later(0, self._next)

    def _event(self, _mask: int) -> None:
        if self._tcp:
            self._tcp_event()
            return
        assert self._sock is not None  # noqa: S101  (for the type checker)
        try:
            message = self._sock.recv(dns.MAX_UDP)
        except BlockingIOError:
            return
        except OSError:  # refused: nobody listens there
            self._next()
            return
        try:
            # Where capitals are not given back at first, some server on the way does not keep them.
            reply = dns.parse_reply(message, self._sent, exact=self._tried == 1)
        except dns.MalformedDns:
            return  # somebody else's: the right one may come yet
        if reply.truncated:
            self._ask_by_tcp()
        else:
            self._take(reply)

    def _ask_by_tcp(self) -> None:
        servers = self._resolver.servers
        self._close()
        if not servers:
            self._next()
            return
        self._got, self._told = b"", False
        self._sent = len(self._sent).to_bytes(2, "big") + self._sent
        self._open(servers[(self._tried - 1) % len(servers)], socket.SOCK_STREAM, _TCP_SECONDS)

    def _tcp_event(self) -> None:
        assert self._sock is not None  # noqa: S101  (for the type checker)
        try:
            if not self._told:
                self._sock.send(self._sent)  # it fits the buffer of a new connection whole
                self._told = True
            while True:
                part = self._sock.recv(4096)
                if not part:
                    raise ConnectionResetError
                self._got += part
                if len(self._got) >= 2 and len(self._got) >= 2 + _length(self._got):
                    break
        except BlockingIOError:
            return
        except OSError:
            self._next()
            return
        whole = self._got[2 : 2 + _length(self._got)]
        try:
            reply = dns.parse_reply(whole, self._sent[2:], exact=False)
        except dns.MalformedDns:
            self._next()
            return
        self._take(reply)

    def _take(self, reply: dns.DnsReply) -> None:
        if reply.truncated or reply.code not in (dns.NOERROR, dns.NXDOMAIN):
            self._next()
            return
        self._ttl = min(self._ttl, reply.ttl) if reply.addresses or reply.alias else self._ttl
        if reply.alias and self._aliases < _MAX_ALIASES:
            self._aliases += 1
            self.name, self._tried = reply.alias, 0
            self._next()
            return
        self._close()
        self._resolver.finish(self, reply.code, reply.addresses, self._ttl)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sock, self._sock = self._sock, None
        if sock is not None:
            self._resolver.loop.forget(sock.fileno())
            sock.close()


def _length(data: bytes) -> int:
    return data[0] << 8 | data[1]


def _mix(label: bytes) -> bytes:
    """Random capitals: an answer repeats them, and who forges one has to guess them."""
    bits = int.from_bytes(os.urandom(8), "big")
    return bytes(
        byte ^ 0x20 if bits >> at & 1 and 97 <= byte <= 122 else byte
        for at, byte in enumerate(label)
    )
