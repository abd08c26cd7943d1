"""Exchanges that take long: for want of words, and for want of room to move them."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.captured import Captured
from tests.unit.egress.terminator.world import HOST, Judging, judging, read_head

from agentd.egress import cassettes, terminating
from agentd.egress.compile import compile_table
from agentd.testing.patience import SLOWER

SHORT = (
    "from agentd.egress.terminator import ends, exchange; "
    "ends.IDLE_SECONDS, exchange.HALF_SECONDS, ends._LOOK_SECONDS = {idle}, {half}, 0.5"
)
RULES = (f"GET {HOST}/v1/**",)
GET = f"GET /v1/x HTTP/1.1\r\nHost: {HOST}\r\n"
END = "\r\n"


@contextlib.contextmanager
def waiting(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, idle: float = 600, half: float = 600
) -> Iterator[Judging]:
    """A terminator that waits for so many seconds."""
    module, short = terminating.MODULE, SHORT.format(idle=idle, half=half)
    monkeypatch.setattr(terminating, "MODULE", f"{module} import main; {short}; from {module}")
    with judging(folder) as made:
        yield made


def test_an_answer_lasts_as_long_as_something_comes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its program says nothing meanwhile."""
    idle = 10 * SLOWER

    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        end = time.monotonic() + 2 * idle
        while time.monotonic() < end:
            sock.sendall(b"1\r\nx\r\n")
            time.sleep(0.1)
        sock.sendall(b"0\r\n\r\n")

    with waiting(tmp_path, monkeypatch, idle=idle) as own, own.program(serve, RULES) as it:
        told = it.ask(f"once({GET + 'Connection: close' + END * 2!r})")
        assert str(told).endswith("0\r\n\r\n"), it.rows()


def test_where_the_program_has_said_all_its_host_is_not_waited_for_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = threading.Event()

    def serve(sock: socket.socket) -> None:
        read_head(sock)
        with contextlib.suppress(OSError):
            sock.recv(1)
        gone.set()

    with (
        waiting(tmp_path, monkeypatch, half=1) as own,
        own.program(serve, RULES, plain=True) as it,
    ):
        it.ask("begin(port=80)")
        it.ask(f"say(0, {GET + END!r})")
        it.ask("kept[0].shutdown(socket.SHUT_WR)")
        assert gone.wait(60)


def test_what_is_said_while_an_answer_is_held_up_by_its_rate_is_not_lost(tmp_path: Path) -> None:
    """The next request, which comes while the end of an answer waits to be moved."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 8000\r\n\r\n" + b"x" * 8000
    answered = threading.Semaphore(0)

    def serve(sock: socket.socket) -> None:
        while read_head(sock):
            sock.sendall(answer)
            answered.release()

    with judging(tmp_path) as own, own.program(serve, RULES, plain=True) as it:
        assert it.admitted is not None
        it.admitted.set({**it.table(*RULES), "budget": {"bytes": None, "rate": 2000}})
        it.ask("begin(port=80)")
        it.ask(f"say(0, {GET + END!r})")
        assert answered.acquire(timeout=60)
        time.sleep(1)  # it has come as far as to be held up
        it.ask(f"say(0, {GET + 'X-Long: ' + 'x' * 4000 + END * 2!r})")
        assert it.ask(f"len(hear(0, {2 * len(answer)}))") == 2 * len(answer)


def test_what_is_read_of_one_sandbox_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads requests may have much to do, and a cassette take long to be looked at."""
    monkeypatch.setattr(terminating, "_SYNC_SECONDS", 600.0)
    looked_at, go_on = threading.Event(), threading.Event()

    def slowly(*_: object) -> bytes:
        looked_at.set()
        go_on.wait(300)
        return b""

    monkeypatch.setattr(cassettes, "recorded", slowly)
    with (
        judging(tmp_path) as own,
        own.program(lambda _: None, ["record", f"{HOST}:443"]) as it,
        contextlib.closing(Captured()) as other,
    ):
        assert it.admitted is not None
        unread = it.keeper.admit(other.sockets, compile_table(["far.example:7"]))
        recorded = threading.Thread(target=it.admitted.recorded, daemon=True)
        recorded.start()
        assert looked_at.wait(60)
        os.kill(it.keeper.terminating.pid, signal.SIGSTOP)
        told = threading.Thread(target=unread.connections, daemon=True)
        try:
            told.start()
            told.join(60)
            assert not told.is_alive()
        finally:
            os.kill(it.keeper.terminating.pid, signal.SIGCONT)
            go_on.set()
            recorded.join(60)
            unread.close()
