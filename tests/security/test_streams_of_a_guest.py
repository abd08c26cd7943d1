"""Threat: a guest that was taken over tells the relay whatever it likes: half a header, garbage,
frames that never end, ten thousand streams, addresses that are nobody's.

Controls: the host believes of a stream only what was dialled, and judges that as it judges a
sandbox's sockets; each stream is one of a bounded number, and closed where it breaks the rules.
"""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.captured import Captured, Served, echo, eventually, relayed
from tests.security.test_egress_bounds import patient

from agentd.egress.compile import compile_table
from agentd.egress.keeper import Admitted, RelayKeeper
from agentd.egress.relay.streams import MAX_ASKING_STREAMS, MAX_BESIDE
from agentd.egress.relay.tenant import MAX_CONNECTIONS
from agentd.linux import dialled
from agentd.linux.dialled import DNS, FRAME, TCP4, TCP6
from agentd.model.egress import EgressBounds, StaticHost
from agentd.testing.patience import SLOWER


class Guest:
    """A guest that keeps to nothing: streams of it go to the relay's listener."""

    def __init__(self, keeper: RelayKeeper, folder: Path, port: int) -> None:
        self._path = str(folder / "guest")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._path)
        listener.listen(dialled.BACKLOG)
        hosts = (StaticHost("db.internal", "127.0.0.1", port),)
        table = compile_table(("db.internal:5432",), EgressBounds(hosts=hosts))
        self.admitted: Admitted = keeper.admit([listener], table)
        self._streams: list[socket.socket] = []

    def stream(self, said: bytes = b"") -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        self._streams.append(stream)
        stream.connect(self._path)
        stream.settimeout(60 * SLOWER)
        with contextlib.suppress(BrokenPipeError):  # it was one too many
            stream.sendall(said)
        return stream

    def address(self) -> bytes:
        """Of db.internal, which it asks for."""
        asking = self.stream(dialled.header(DNS) + question(1, "db.internal"))
        answer = frame(asking)
        asking.close()
        return answer[-4:]

    def talks(self) -> bytes:
        """What an honest connection gets."""
        stream = self.stream(dialled.header(TCP4, self.address(), 5432) + framed(b"hello"))
        return frame(stream)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self.admitted.close()


def framed(data: bytes) -> bytes:
    return FRAME.pack(len(data)) + data


def frame(stream: socket.socket) -> bytes:
    """The next one; empty where the relay has closed the stream."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        head = stream.recv(4, socket.MSG_WAITALL)
        while head and len(found) < FRAME.unpack(head)[0]:
            found += stream.recv(FRAME.unpack(head)[0] - len(found))
    return found


def question(number: int, name: str) -> bytes:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    query = bytes((0, number, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)) + labels + bytes((0, 0, 1, 0, 1))
    return framed(number.to_bytes(4, "big") + query)


def closed(stream: socket.socket) -> bool:
    """Whether the relay closes it, and says nothing."""
    try:
        return stream.recv(1) == b""
    except ConnectionResetError:
        return True


@contextlib.contextmanager
def guest_of(folder: Path, more: str = "") -> Iterator[Guest]:
    """With a relay that runs ``more`` before its main."""
    served = Served(echo)
    with patient(more or "pass"), relayed() as (keeper, _):
        made = Guest(keeper, folder, served.port)
        yield made
        made.close()
    served.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with guest_of(tmp_path) as made:
        yield made


def denied(guest: Guest) -> set[tuple[str, Any]]:
    rows = guest.admitted.connections().rows
    return {(row["name"] or row["address"], row["port"]) for row in rows if not row["allowed"]}


def test_what_it_says_that_was_dialled_is_judged_as_if_it_were(guest: Guest) -> None:
    v4 = ("127.0.0.1", "169.254.169.254", "0.0.0.0", "8.8.8.8")  # noqa: S104  dialled, not bound
    v6 = ("::1", "::ffff:127.0.0.1")
    for text in v4:
        head = dialled.header(TCP4, socket.inet_aton(text), 5432)
        assert closed(guest.stream(head + framed(b"x"))), text
    for text in v6:
        head = dialled.header(TCP6, socket.inet_pton(socket.AF_INET6, text), 5432)
        assert closed(guest.stream(head + framed(b"x"))), text
    # An address of those that names have, which no name has; a port that no rule has.
    assert closed(guest.stream(dialled.header(TCP4, socket.inet_aton("198.18.0.9"), 5432)))
    assert closed(guest.stream(dialled.header(TCP4, guest.address(), 22)))
    eventually(lambda: len(denied(guest)) >= 8)
    assert denied(guest) >= {*((text, 5432) for text in v4), ("db.internal", 22)}
    assert guest.talks() == b"hello"


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: db.internal\r\n\r\n",
        bytes(20),
        dialled.HEADER.pack(2, TCP4, 1, bytes(16)),
        dialled.HEADER.pack(1, 7, 1, bytes(16)),
        dialled.header(DNS) + FRAME.pack(0),
        dialled.header(DNS) + FRAME.pack(1 << 31) + b"x",
        dialled.header(DNS) + FRAME.pack(dialled.MAX_FRAME) + bytes(4096),
        dialled.header(DNS) + framed(b""),
    ],
)
def test_nonsense_ends_its_own_stream_alone(guest: Guest, said: bytes) -> None:
    assert closed(guest.stream(said))
    assert guest.talks() == b"hello"


def test_frames_that_break_the_rules_reset_the_connection(guest: Guest) -> None:
    head = dialled.header(TCP4, guest.address(), 5432)
    for wrong in (FRAME.pack(dialled.MAX_FRAME + 1), framed(b"") + framed(b"after the end")):
        stream = guest.stream(head + framed(b"first"))
        assert frame(stream) == b"first"
        stream.sendall(wrong)
        assert closed(stream) or closed(stream)
    for version, kind in ((2, TCP4), (1, 7)):
        wrong = dialled.HEADER.pack(version, kind, 5432, guest.address())
        assert closed(guest.stream(wrong + framed(b"first")))
    # Questions that are none, or of no host, cost an answer at most.
    asking = guest.stream(dialled.header(DNS) + framed(b"\0\0\0\1" + b"\xff" * 300))
    asking.sendall(question(2, "db.internal"))
    assert frame(asking)[:4] == (2).to_bytes(4, "big")
    assert guest.talks() == b"hello"


def test_it_has_no_more_streams_than_it_may(tmp_path: Path) -> None:
    waits = "from agentd.egress.relay import streams; streams.START_SECONDS = 600"
    with guest_of(tmp_path, waits) as guest:
        head = dialled.header(TCP4, guest.address(), 5432)
        most = MAX_CONNECTIONS + MAX_BESIDE
        made = [guest.stream(head[:10]) for _ in range(most + 20)]
        assert all(closed(stream) for stream in made[most:])
        for stream in made[: most // 2]:
            stream.close()
        eventually(lambda: guest.talks() == b"hello")


def test_half_a_header_is_waited_for_no_longer_than_any_start(tmp_path: Path) -> None:
    waits = "from agentd.egress.relay import streams; streams.START_SECONDS = 0.2"
    with guest_of(tmp_path, waits) as guest:
        head = dialled.header(TCP4, guest.address(), 5432)
        assert all(closed(guest.stream(head[:size])) for size in (0, 1, len(head) - 1))


def test_what_streams_took_is_given_back(tmp_path: Path) -> None:
    """By: the descriptors that they have, beside those of connections, are counted both ways."""
    few = "from agentd.linux import process; import resource; "
    few += "process.raise_file_limit = lambda: resource.setrlimit(7, (1100, 1100))"
    with guest_of(tmp_path, few) as guest:
        head = dialled.header(TCP4, guest.address(), 5432)

        def held() -> int:
            """How many connections it may have at once."""
            kept: list[socket.socket] = []
            while frame(stream := guest.stream(head + framed(b"x"))) == b"x":
                kept.append(stream)
            for stream in kept:
                stream.close()
            return len(kept)

        before = held()
        for _ in range(150):
            stream = guest.stream(head + framed(b"x"))
            assert frame(stream) == b"x"
            stream.close()
        eventually(lambda: held() == before)


def test_questions_have_few_streams(guest: Guest) -> None:
    for _ in range(2):  # what is closed counts no more
        asking = [guest.stream(dialled.header(DNS)) for _ in range(MAX_ASKING_STREAMS)]
        for number, stream in enumerate(asking):
            stream.sendall(question(number + 1, "db.internal"))
            assert frame(stream)[:4] == (number + 1).to_bytes(4, "big")
        assert closed(guest.stream(dialled.header(DNS)))
        for stream in asking:
            stream.close()
        eventually(lambda: guest.talks() == b"hello")


def test_who_takes_no_answers_gets_none_and_holds_nobody_up(guest: Guest) -> None:
    deaf = guest.stream(dialled.header(DNS))
    asked = question(1, "db.internal")
    for _ in range(20_000):
        deaf.sendall(asked)
    # What waited for it, in the relay and in the kernel, is little of what it asked for.
    size, found = 0, b""
    while found[:4] != b"\0\0\0\2":
        deaf.sendall(question(2, "db.internal"))
        found = frame(deaf)
        size += len(found)
    assert 0 < size < 20_000 * len(asked) // 2
    deaf.close()
    slow = guest.stream(dialled.header(TCP4, guest.address(), 5432))
    slow.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(1000):
            slow.send(framed(bytes(dialled.MAX_FRAME)))
    assert guest.talks() == b"hello"


def test_a_flood_in_a_machine_is_over_once_it_is() -> None:
    """By: its front end has so many connections at once, and what has ended is none any more."""
    served = Served(echo)
    inside = Captured(streams=True)
    try:
        with relayed() as (keeper, _):
            hosts = (StaticHost("db.internal", "127.0.0.1", served.port),)
            table = compile_table(("db.internal:5432",), EgressBounds(hosts=hosts))
            admitted = keeper.admit(inside.sockets, table)
            inside.ask("__import__('resource').setrlimit(7, (4096, 4096))")
            address = inside.ask("resolve('db.internal')")[1]
            flood = f"len([attempt(keep, {address!r}, 5432) for _ in range(1200)])"
            assert inside.ask(flood) == 1200
            assert inside.ask("[sock.close() for sock in kept] and kept.clear()") is None
            eventually(lambda: inside.ask(f"talk({address!r}, 5432, b'x')") == "x")
            admitted.close()
    finally:
        inside.close()
        served.close()
