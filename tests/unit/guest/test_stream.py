"""A stream's buffer, its marks, its end, and descriptors that come along."""

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.guest.loop import Loop
from agentd.guest.stream import HIGH_WATER, LOW_WATER, HostStream


class User:
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.data = b""
        self.said: list[str] = []

    def on_bytes(self, data: bytes) -> None:
        self.data += data
        self.loop.stop()

    def on_eof(self) -> None:
        self.said.append("eof")
        self.loop.stop()

    def on_drained(self) -> None:
        self.said.append("drained")
        self.loop.stop()

    def on_lost(self) -> None:
        self.said.append("lost")
        self.loop.stop()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pair(loop: Loop) -> Iterator[tuple[HostStream, User, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(120)
    stream = HostStream(loop, ours)
    user = User(loop)
    stream.start(user)
    yield stream, user, theirs
    stream.close()
    theirs.close()


def test_descriptors_are_close_on_exec_and_closed_when_unclaimed(
    pair: tuple[HostStream, User, socket.socket],
) -> None:
    stream, user, theirs = pair
    reader, writer = os.pipe()
    socket.send_fds(theirs, [b"x"], [writer, writer])
    os.close(writer)
    stream.loop.run()
    assert user.data == b"x"
    taken = stream.take_fds()
    assert [os.get_inheritable(fd) for fd in taken] == [False, False]
    for fd in taken:
        os.close(fd)
    reader2, writer2 = os.pipe()
    socket.send_fds(theirs, [b"y"], [writer2])
    os.close(writer2)
    stream.loop.run()
    stream.close()
    for fd in (reader, reader2):
        with os.fdopen(fd, "rb") as file:
            assert file.read() == b""


def test_the_marks(pair: tuple[HostStream, User, socket.socket]) -> None:
    stream, user, theirs = pair
    block = b"x" * (64 << 10)
    while stream.room():
        stream.write(block)
    assert stream.pending >= HIGH_WATER
    received = 0
    stream.loop.after(0.01, stream.loop.stop)
    stream.loop.run()
    while not user.said:
        received += len(theirs.recv(1 << 16))
        stream.loop.after(0, stream.loop.stop)
        stream.loop.run()
    assert user.said == ["drained"]
    assert stream.pending <= LOW_WATER
    assert stream.room() >= HIGH_WATER - LOW_WATER


def test_finish_delivers_all_before_the_end(pair: tuple[HostStream, User, socket.socket]) -> None:
    stream, user, theirs = pair
    theirs.sendall(b"unread input must not reset the last words")
    stream.write(b"last words")
    stream.finish()
    stream.write(b"dropped")
    assert theirs.recv(100) == b"last words"
    assert theirs.recv(100) == b""
    theirs.close()
    stream.loop.run()
    assert stream.closed
    assert user.said == []


def test_a_peer_that_is_gone(pair: tuple[HostStream, User, socket.socket]) -> None:
    stream, user, theirs = pair
    theirs.close()
    stream.loop.run()
    assert user.said == ["eof"]
    stream.write(b"x")
    stream.loop.run()
    assert user.said == ["eof", "lost"]
    assert stream.closed


def test_pause(pair: tuple[HostStream, User, socket.socket]) -> None:
    stream, user, theirs = pair
    theirs.sendall(b"x")
    stream.pause()
    stream.loop.after(0.01, stream.loop.stop)
    stream.loop.run()
    assert user.data == b""
    stream.resume()
    stream.loop.run()
    assert user.data == b"x"


def test_a_pair_of_descriptors_gets_its_flags_back(loop: Loop) -> None:
    reader, feed = os.pipe()
    drain, writer = os.pipe()
    kept = os.dup(reader)
    stream = HostStream(loop, (reader, writer))
    user = User(loop)
    stream.start(user)
    os.write(feed, b"in")
    loop.run()
    stream.write(b"out")
    loop.soon(loop.stop)
    loop.run()
    assert (user.data, os.read(drain, 9)) == (b"in", b"out")
    assert not os.get_blocking(kept)
    stream.close()
    assert os.get_blocking(kept)
    for fd in (feed, drain, kept):
        os.close(fd)


class Port:
    """A fifo is to its reader what a port is: an end of file for as long as nobody is there."""

    def __init__(self, loop: Loop, path: str) -> None:
        os.mkfifo(path)
        self.path = path
        self.reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.stream = HostStream(
            loop, (self.reader, os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
        )
        self.stream.has_host = self.has_host
        self.hosts: list[int] = []

    def has_host(self) -> bool:
        poll = select.poll()
        poll.register(self.reader, 0)
        return not poll.poll(0)

    def come(self) -> None:
        self.hosts.append(os.open(self.path, os.O_WRONLY | os.O_CLOEXEC))

    def leave(self) -> None:
        os.close(self.hosts.pop())


@pytest.fixture
def port(loop: Loop, tmp_path: Path) -> Iterator[tuple[Port, User]]:
    made = Port(loop, str(tmp_path / "port"))
    user = User(loop)
    made.come()
    made.stream.start(user)
    yield made, user
    made.stream.close()
    while made.hosts:
        made.leave()


def test_a_host_that_leaves_is_missed_a_moment_later(loop: Loop, port: tuple[Port, User]) -> None:
    there, user = port
    os.write(there.hosts[0], b"last words")
    there.leave()
    loop.run()
    assert (user.data, user.said) == (b"last words", [])
    loop.run()
    assert user.said == ["eof"]


def test_one_that_comes_meanwhile_is_heard(loop: Loop, port: tuple[Port, User]) -> None:
    """Its bytes may be read before the news that the one before has left."""
    there, user = port
    os.write(there.hosts[0], b"hello of the next")
    there.leave()
    loop.run()
    assert user.data == b"hello of the next"
    loop.after(0.0, there.come)
    loop.after(0.1, loop.stop)
    loop.run()
    assert user.said == []
    os.write(there.hosts[0], b", and more")
    loop.run()
    assert user.data == b"hello of the next, and more"


def test_a_stream_that_is_closed_in_doubt_is_closed(loop: Loop, port: tuple[Port, User]) -> None:
    there, user = port
    there.leave()
    loop.after(0.003, there.stream.close)
    loop.run()
    assert user.said == [] and there.stream.closed


@pytest.mark.parametrize("said", [b"something", b""])
def test_a_stream_whose_user_fails_is_closed_and_its_peer_knows(
    pair: tuple[HostStream, User, socket.socket], monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """The loop watches no descriptor again whose callback has raised."""
    stream, user, theirs = pair
    told: list[Exception] = []

    def fails(*_: object) -> None:
        user.loop.stop()
        raise MemoryError

    monkeypatch.setattr(user.loop, "_on_error", told.append)
    for name in ("on_bytes", "on_eof"):
        monkeypatch.setattr(user, name, fails)
    if said:
        theirs.sendall(said)
    else:
        theirs.shutdown(socket.SHUT_WR)
    user.loop.run()
    assert [type(error) for error in told] == [MemoryError]
    assert (stream.closed, user.said) == (True, ["lost"])
    assert theirs.recv(1) == b""
