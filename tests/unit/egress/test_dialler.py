"""What dials for a program: whatever that says, by sockets of its own."""

import contextlib
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from agentd.egress import dialler
from agentd.egress.destinations import Destinations, Place
from agentd.egress.dialler import Dialler, Entrance
from agentd.egress.proxies import Proxies

SECONDS = 20


@pytest.fixture
def far() -> Iterator[int]:
    """The port of a host that says back what it is told, once that is all."""
    with socket.create_server(("127.0.0.1", 0), backlog=dialler._MOST) as listener:

        def serve() -> None:
            while True:
                sock, _ = listener.accept()
                with contextlib.suppress(OSError), sock:
                    told = b""
                    while data := sock.recv(1 << 16):
                        told += data
                    sock.sendall(told)

        def until_shut() -> None:
            with contextlib.suppress(OSError):
                serve()

        thread = threading.Thread(target=until_shut)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def served(far: int) -> Iterator[tuple[Dialler, int]]:
    """A dialler that may reach 127.0.0.1 at the port, and the port where it speaks SOCKS."""
    ours, theirs = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener, theirs:
        port = int(listener.getsockname()[1])
        named = Destinations([Place("127.0.0.1", far), Place("localhost", far)])
        found = Dialler(ours, [Entrance("127.0.0.1", port)], named, Proxies({}))
        socket.send_fds(theirs, [b"\0"], [listener.fileno()])
        try:
            yield found, port
        finally:
            found.close()


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SECONDS)


def asked(sock: socket.socket, request: bytes) -> bytes:
    """The answer to a request of SOCKS, empty where there is none."""
    sock.sendall(b"\5\1\0")
    assert sock.recv(2) == b"\5\0"
    sock.sendall(request)
    try:
        return sock.recv(10)
    except ConnectionResetError:
        return b""


def of_name(name: bytes, port: int) -> bytes:
    return b"\5\1\0\3" + bytes((len(name),)) + name + struct.pack(">H", port)


def test_what_is_said_arrives_both_ways(served: tuple[Dialler, int], far: int) -> None:
    number = b"\5\1\0\1\x7f\0\0\1" + struct.pack(">H", far)
    for request in (number, of_name(b"localhost", far)):
        with connected(served[1]) as sock:
            assert asked(sock, request)[:2] == b"\5\0"
            said = bytes(range(256)) * 20000  # more than any buffer on its way

            def say(sock: socket.socket = sock, said: bytes = said) -> None:
                sock.sendall(said)
                sock.shutdown(socket.SHUT_WR)

            thread = threading.Thread(target=say)
            thread.start()
            heard = b""
            while data := sock.recv(1 << 16):
                heard += data
            thread.join()
            assert heard == said


@pytest.mark.parametrize(
    "request_",
    [
        b"\5\2\0\1\x7f\0\0\1\0\x50",  # to bind, as a server would
        b"\5\3\0\1\x7f\0\0\1\0\x50",  # for datagrams
        b"\4\1\0\1\x7f\0\0\1\0\x50",
        b"\5\1\0\x09\x7f\0\0\1\0\x50",  # of no family
    ],
)
def test_whoever_wants_more_than_to_be_connected_is_hung_up_on(
    served: tuple[Dialler, int], request_: bytes
) -> None:
    with connected(served[1]) as sock:
        assert asked(sock, request_) == b""


def reaches(port: int, far: int) -> bool:
    with connected(port) as sock:
        request = b"\5\1\0\1\x7f\0\0\1" + struct.pack(">H", far)
        return asked(sock, request)[:2] == b"\5\0"


def test_where_no_thread_is_left_one_is_hung_up_on_and_the_next_is_served(
    served: tuple[Dialler, int], far: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with connected(served[1]) as sock, contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    assert reaches(served[1], far)
    served[0].close()


def test_where_no_descriptor_is_left_one_waits_until_there_is(
    served: tuple[Dialler, int], far: int
) -> None:
    assert reaches(served[1], far)  # by now it has the sockets
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    filled: list[int] = []
    with socket.socket() as sock:
        sock.settimeout(SECONDS)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 512), before[1]))
            with contextlib.suppress(OSError):
                while True:
                    filled.append(os.dup(sock.fileno()))
            sock.connect(("127.0.0.1", served[1]))
            time.sleep(0.2)  # it is refused a descriptor meanwhile
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for fd in filled:
                os.close(fd)
        assert asked(sock, b"\5\1\0\1\x7f\0\0\1" + struct.pack(">H", far))[:2] == b"\5\0"
    assert reaches(served[1], far)


def test_where_there_is_no_descriptor_for_the_sockets_whoever_dials_is_refused() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours, theirs = socket.socketpair()
    filled: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, theirs:
        port = int(listener.getsockname()[1])
        found = Dialler(
            ours, [Entrance("127.0.0.1", port)] * 2, Destinations([Place("a", 1)]), Proxies({})
        )
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 512), before[1]))
            with contextlib.suppress(OSError):
                while True:
                    filled.append(os.dup(theirs.fileno()))
            os.close(filled.pop())
            socket.send_fds(theirs, [b"\0\1"], [listener.fileno(), listener.fileno()])
            found._thread.join(SECONDS)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for fd in filled:
                os.close(fd)
    assert not found._thread.is_alive()
    with pytest.raises(ConnectionRefusedError):
        connected(port)
    found.close()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\5\0", b"\5\1\2"])
def test_whoever_speaks_no_socks_is_hung_up_on(served: tuple[Dialler, int], said: bytes) -> None:
    with connected(served[1]) as sock:
        sock.sendall(said)
        with contextlib.suppress(OSError):  # it is hung up on already, ENOTCONN
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"local\0host", "is not among 80, 443"),
        (b"\xff\xfe", "is not among 80, 443"),
        (b"a" * 255, "is not among 80, 443"),
        (b"", "no rule has "),
        (b"127.1", "is not among 80, 443"),
        (b"fe80::1%lo", "is not among 80, 443"),
        (b"169.254.169.254", "is link-local, as metadata services are"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_with_the_reason(
    served: tuple[Dialler, int], far: int, name: bytes, reason: str
) -> None:
    found, port = served
    with connected(port) as sock:
        assert asked(sock, of_name(name, far))[:2] == b"\5\4"
    (told,) = found.unreached
    assert told.barred and reason in told.reason, told


@pytest.mark.parametrize("name", [b"local\0host", b"a" * 255])
def test_what_is_no_name_is_not_found(served: tuple[Dialler, int], name: bytes) -> None:
    found, port = served
    with connected(port) as sock:
        assert asked(sock, of_name(name, 443))[:2] == b"\5\4"
    (told,) = found.unreached
    assert not told.barred


def test_no_more_connections_are_had_at_once_than_the_bound(
    served: tuple[Dialler, int], far: int
) -> None:
    found, port = served
    with contextlib.ExitStack() as stack:
        some = [stack.enter_context(connected(port)) for _ in range(dialler._MOST)]
        for sock in some:
            sock.sendall(b"\5\1\0")
            assert sock.recv(2) == b"\5\0"
        with connected(port) as one_more, contextlib.suppress(ConnectionResetError):
            assert one_more.recv(1) == b""
        assert asked_again(some[0], far) == b"\5\0"
        found.close()
        for sock in some[1:]:
            assert sock.recv(1) == b""


def asked_again(sock: socket.socket, port: int) -> bytes:
    sock.sendall(of_name(b"localhost", port))
    return sock.recv(10)[:2]


def slowly(sock: socket.socket, data: bytes, said: bytearray) -> None:
    """Each byte long before a time limit for one would end, and all of them long after."""
    with contextlib.suppress(OSError):
        for byte in data:
            sock.sendall(bytes((byte,)))
            said.append(byte)
            time.sleep(0.2)


def test_whoever_says_a_byte_at_a_time_is_hung_up_on(
    served: tuple[Dialler, int], far: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialler, "_SAY_SECONDS", 1.0)
    said, words = bytearray(), b"\5\xff" + b"\0" * 60
    with connected(served[1]) as sock:
        thread = threading.Thread(target=slowly, args=(sock, words, said))
        thread.start()
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(1):
                pass
        assert len(said) < len(words)
        thread.join()
    assert reaches(served[1], far)


def test_a_proxy_that_answers_a_byte_at_a_time_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialler, "_ANSWER_SECONDS", 1.0, raising=False)
    monkeypatch.setattr(dialler, "_DIAL_SECONDS", 1.0)
    said, words = bytearray(), b"HTTP/1.1 200 " + b"x" * 50
    ours, theirs = socket.socketpair()
    with (
        socket.create_server(("127.0.0.1", 0)) as proxy,
        socket.create_server(("127.0.0.1", 0)) as listener,
        theirs,
    ):

        def serve() -> None:
            sock, _ = proxy.accept()
            with sock:
                slowly(sock, words, said)

        thread = threading.Thread(target=serve)
        thread.start()
        port = int(listener.getsockname()[1])
        place, env = Place("far.example", 443), f"http://127.0.0.1:{proxy.getsockname()[1]}"
        entrance = Entrance("127.0.0.1", port, scheme="https")
        named = Destinations([place])
        found = Dialler(ours, [entrance], named, Proxies({"HTTPS_PROXY": env}))
        try:
            socket.send_fds(theirs, [b"\0"], [listener.fileno()])
            with connected(port) as sock:
                assert asked(sock, of_name(b"far.example", 443))[:2] == b"\5\4"
                assert len(said) < len(words)
            (told,) = found.unreached
            assert (told.place, told.reason, told.barred) == (place, "timed out", False)
        finally:
            found.close()
            thread.join()


def test_no_program_that_is_started_has_the_socket_of_a_namespace(
    served: tuple[Dialler, int], far: int
) -> None:
    with connected(served[1]) as sock:
        assert asked(sock, of_name(b"localhost", far))[:2] == b"\5\0"  # it has come by then
        listeners = [fd for fd in map(int, os.listdir("/proc/self/fd")) if _port(fd) == served[1]]
        assert len(listeners) > 1
        assert not [fd for fd in listeners if os.get_inheritable(fd)]


def _port(fd: int) -> int:
    """Where it listens; 0 for what does not."""
    with contextlib.suppress(OSError):
        if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
            with socket.socket(fileno=os.dup(fd)) as sock:
                listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if listens and sock.family == socket.AF_INET:
                    return int(sock.getsockname()[1])
    return 0
