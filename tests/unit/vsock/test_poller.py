"""Events go to whoever watched when they happened."""

import select
import socket

from agentd.vsock.poller import Poller


def test_a_descriptor_of_the_same_number_does_not_get_anothers_events() -> None:
    poller = Poller()
    pairs = [socket.socketpair() for _ in range(2)]
    new: list[socket.socket] = []
    calls: list[str] = []

    def first(other: socket.socket) -> None:
        """Whoever comes first ends the other, which has an event in the same turn."""
        calls.append("first")
        poller.retire(other)
        new.extend(socket.socketpair())
        for sock in new:
            poller.watch(sock.fileno(), select.EPOLLIN, lambda _: calls.append("another's"))

    for number, (mine, theirs) in enumerate(pairs):
        theirs.send(b"x")
        other = pairs[1 - number][0]
        poller.watch(mine.fileno(), select.EPOLLIN, lambda _, other=other: first(other))
    poller.turn(0)
    assert calls == ["first"]
    poller.close()
    for sock in [*pairs[0], *pairs[1], *new]:
        sock.close()


def test_what_is_forgotten_is_silent() -> None:
    poller = Poller()
    left, right = socket.socketpair()
    calls: list[int] = []
    poller.watch(left.fileno(), select.EPOLLIN, calls.append)
    right.send(b"x")
    poller.forget(left.fileno())
    poller.forget(left.fileno())
    poller.turn(0)
    assert calls == []
    poller.close()
    left.close()
    right.close()
