"""What the guest of a machine passes on: streams, each a connection that a program of it dialled,
or its questions of DNS (``linux.dialled``).

Nothing of it is believed but that somebody in there dialled an address and a port: whoever says so
is judged as if he had. To the rest of the relay a connection is one end of a pair of sockets.
"""

import contextlib
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from agentd.egress.relay.connection import HALF_SECONDS, NEAR_BUFFER, START_SECONDS
from agentd.egress.relay.loop import BOTH, GONE, Later
from agentd.egress.relay.nameserver import MAX_QUERY, NameServer
from agentd.linux import dialled
from agentd.linux.dialled import BrokenStream, Shuttle

if TYPE_CHECKING:
    from agentd.egress.relay.connection import RelayedConnection
    from agentd.egress.relay.refusal import HttpRefusal
    from agentd.egress.relay.relay import Relay
    from agentd.egress.relay.tenant import Tenant

#: Streams of one machine beside those that are connections: of questions, those whose header has
#: not come, and those whose guest has not taken the last of them.
MAX_BESIDE = 64
MAX_ASKING_STREAMS = 8
#: Until who reads a connection's requests has read what its program said last, and told why it
#: ended by that.
_READ_SECONDS = 5.0
_TURNS = 8  # of reading questions, then others have theirs
_MAX_ANSWERS = 64 << 10  # bytes that wait for a guest that takes none


class ClientEnd(socket.socket):
    """The relay's end of a connection. Knows, once it is closed, whether that was to be a reset:
    a pair of sockets does not tell."""

    was_reset = False

    def setsockopt(self, level: int, optname: int, *value: Any) -> None:
        if (level, optname) == (socket.SOL_SOCKET, socket.SO_LINGER):
            self.was_reset = True
        super().setsockopt(level, optname, *value)


class _Role(Protocol):
    def ready(self, mask: int) -> bool:
        """Serve what is ready; True where there is more, and others have their turn first. Raises
        OSError where it is over."""

    def close(self) -> None: ...


class GuestStream:
    """Ends with its tenant, by ``close``."""

    __slots__ = ("_head", "_late", "_names", "_relay", "_role", "_sock", "_tenant")

    def __init__(
        self, relay: "Relay", names: NameServer, tenant: "Tenant", sock: socket.socket
    ) -> None:
        """Takes ownership of ``sock``, which does not block."""
        self._relay, self._names, self._tenant, self._sock = relay, names, tenant, sock
        self._head = b""
        self._role: _Role | None = None
        tenant.streams[self] = None
        relay.descriptors += 1
        relay.loop.watch(sock.fileno(), BOTH, self._event)
        self._late: Later | None = relay.loop.later(START_SECONDS, self.close)

    def close(self) -> None:
        """Close it; what was not said by then is reset. Idempotent."""
        if self._tenant.streams.pop(self, self) is not None:
            return
        if self._late is not None:
            self._late.cancel()
        self._relay.descriptors -= 1
        self._relay.loop.drop(self._sock.fileno())
        self._sock.close()
        if self._role is not None:
            self._role.close()

    def linger(self) -> None:
        """Close it in a moment: nobody says more here, and what was said is to be taken."""
        if self._late is None:
            self._late = self._relay.loop.later(HALF_SECONDS, self.close)

    def _event(self, mask: int) -> None:
        if self not in self._tenant.streams:
            return
        try:
            more = self._read_header() if self._role is None else self._role.ready(mask)
        except OSError:
            self.close()
        except Exception:
            self.close()
            raise
        else:
            if more:
                self._relay.loop.soon(partial(self._event, 0))

    def _read_header(self) -> bool:
        while (left := dialled.HEADER.size - len(self._head)) > 0:
            try:
                data = self._sock.recv(left)
            except BlockingIOError:
                return False
            if not data:
                raise BrokenStream("it ended before it said what was dialled")
            self._head += data
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self._role = self._begin(*dialled.parse_header(self._head))
        return True

    def _begin(self, kind: int, address: bytes, port: int) -> _Role:
        if kind == dialled.DNS:
            return _Questions(self._names, self._tenant, self._sock)
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        client = ClientEnd(far.family, far.type, far.proto, far.detach())
        try:
            for sock in (near, client):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NEAR_BUFFER)
            connection = self._relay.take(self._tenant, client, address, port)
            if connection is None:
                raise BrokenStream("it was refused")
        except BaseException:
            near.close()
            client.close()
            raise
        self._relay.descriptors += 1
        self._relay.loop.watch(near.fileno(), BOTH, self._near_event)
        shuttle = Shuttle(self._sock, near, lambda: client.was_reset)
        return _Carried(self, self._relay, connection, near, client, shuttle)

    def _near_event(self, _mask: int) -> None:
        self._event(0)


class _Carried:
    """A connection: what is in frames there is plain here."""

    def __init__(
        self,
        stream: GuestStream,
        relay: "Relay",
        connection: "RelayedConnection | HttpRefusal",
        near: socket.socket,
        client: ClientEnd,
        shuttle: Shuttle,
    ) -> None:
        """``near`` is our end of the pair whose other one is ``client``, the relay's."""
        self._stream, self._relay, self._connection = stream, relay, connection
        self._near, self._client, self._shuttle = near, client, shuttle
        self._gone = False

    def ready(self, mask: int) -> bool:
        more = self._shuttle.move()
        self._gone = self._gone or bool(mask & GONE)
        if self._gone and not more:
            self._shuttle.gone()
        if self._client.fileno() < 0:  # the relay has ended it
            if self._shuttle.said:
                raise BrokenStream("it is over")
            self._stream.linger()
        if self._shuttle.finished:
            raise BrokenStream("both ends have said all")
        return more

    def close(self) -> None:
        self._relay.descriptors -= 1
        self._relay.loop.drop(self._near.fileno())
        self._near.close()
        if self._shuttle.finished:
            return  # what was said last is on its way still: the connection ends by itself
        end = partial(self._connection.end, "the program went away", reset=True)
        if self._connection.passed:
            self._relay.loop.later(_READ_SECONDS, end)
        else:
            end()


class _Questions:
    """Questions of DNS, each with a number that its answer has, too."""

    def __init__(self, names: NameServer, tenant: "Tenant", sock: socket.socket) -> None:
        if tenant.asking_streams >= MAX_ASKING_STREAMS:
            raise BrokenStream("too many streams of questions")
        tenant.asking_streams += 1
        self._names, self._tenant, self._sock = names, tenant, sock
        self._frames = dialled.FrameParser()
        self._said = bytearray()  # of a frame
        self._out = bytearray()
        self._closed = False

    def ready(self, _mask: int) -> bool:
        self._flush()
        for _ in range(_TURNS):
            try:
                data = self._sock.recv(MAX_QUERY)
            except BlockingIOError:
                return False
            if not data:
                raise BrokenStream("the guest asks no more")
            for piece, last in self._frames.feed(data):
                self._said += piece
                if len(self._said) > dialled.NUMBER.size + MAX_QUERY:
                    raise BrokenStream("no question is as long")
                if last:
                    asked, self._said = bytes(self._said), bytearray()
                    self._ask(asked)
            if self._frames.ended:
                raise BrokenStream("the guest asks no more")
        return True

    def close(self) -> None:
        self._closed = True
        self._tenant.asking_streams -= 1

    def _ask(self, asked: bytes) -> None:
        number, query = asked[: dialled.NUMBER.size], asked[dialled.NUMBER.size :]
        self._names.ask(self._tenant, query, _GuestAsker(self, number))

    def answer(self, number: bytes, message: bytes) -> None:
        """Dropped where the guest takes none: it asks again."""
        if self._closed or len(self._out) > _MAX_ANSWERS:
            return
        self._out += dialled.FRAME.pack(len(number) + len(message)) + number + message
        with contextlib.suppress(OSError):  # which the next event meets as well
            self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._out:
                del self._out[: self._sock.send(self._out)]


class _GuestAsker:
    """Whoever asked, by the number that the guest gave the question."""

    __slots__ = ("_number", "_questions")

    def __init__(self, questions: _Questions, number: bytes) -> None:
        self._questions, self._number = questions, number

    def answer(self, message: bytes) -> None:
        self._questions.answer(self._number, message)
