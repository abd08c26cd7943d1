"""Threat: a sandbox that has found what crashes the relay, or what reads requests, closes the
network of all others by it.

Control: each of these says in memory of its host's for whom it does something, so that the host
knows at whose doing it died, and has that one served no more.
"""

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.captured import Captured, Served, echo, eventually, relayed
from tests.unit.egress.terminator.world import judging

from agentd.egress import deaths, terminating
from agentd.egress import process as processes
from agentd.egress.compile import compile_table
from agentd.model.egress import EgressBounds, StaticHost
from agentd.model.errors import SandboxError

RELAY = processes.MODULE
# Relays with a hole each, by what it is that they fall over.
CRASH = "import ctypes; fall = lambda found: ctypes.string_at(0) if found else None; "
# And one that is at it for long.
WORK = "import time; fall = lambda found: time.sleep(600) if found else None; "
REQUEST = b"GET /crash HTTP/1.1\r\nHost: db.internal\r\n\r\n"
# It awaits no answer.
ASK = (
    "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
    ".sendto(query('x.crash.example'), ('9.9.9.9', 53))"
)
REQUEST_SAID = f"talk('db.internal', 80, {REQUEST!r})"
HOLES = {
    "what is said": (
        (
            "from agentd.egress.relay import hello; host = hello.host; "
            "hello.host = lambda data: (fall(b'crash' in data), host(data))[1]"
        ),
        REQUEST_SAID,
    ),
    "what is asked": (
        (
            "from agentd.egress.relay import dns; parse = dns.parse_query; "
            "dns.parse_query = lambda data: (fall(b'crash' in data), parse(data))[1]"
        ),
        ASK,
    ),
    "what a server answers": (
        (
            "from agentd.egress.relay import dns; parse = dns.parse_reply; "
            "dns.parse_reply = lambda data, sent, exact: "
            "(fall(b'crash' in data.lower()), parse(data, sent, exact=exact))[1]"
        ),
        ASK,
    ),
    "what is late": (
        (
            "from agentd.egress.relay import connection; connection.START_SECONDS = 0.1; "
            "connection.RelayedConnection._late = lambda self: fall(self.port == 443)"
        ),
        "talk('db.internal', 443)",
    ),
}
# waitid(2) tells the number of a signal where it tells an exit code.
EXIT = f"import os; fall = lambda found: os._exit({signal.SIGKILL:d}) if found else None; "
HOLES["an exit with the number of SIGKILL"] = EXIT + HOLES["what is said"][0], REQUEST_SAID


@contextlib.contextmanager
def falling(hole: str) -> Iterator[None]:
    processes.MODULE = f"{RELAY} import main; {CRASH}{hole}; from {RELAY}"
    try:
        yield
    finally:
        processes.MODULE = RELAY


@pytest.mark.parametrize(
    ("hole", "without"), [*((hole, "") for hole in HOLES), ("what is said", "attribution")]
)
def test_it_loses_its_own_network_alone(
    hole: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without:
        monkeypatch.setattr(processes.RelayProcess, "worked_for", lambda _: 0)
        monkeypatch.setattr(deaths, "WITHIN", 3600.0)  # a busy machine starts one in its own time
    patch, attack = HOLES[hole]
    served, evil, good = Served(echo), Captured(), Captured()
    bounds = EgressBounds(hosts=(StaticHost("db.internal", "127.0.0.1", served.port),))
    table = compile_table(["db.internal:*", "*.crash.example"], bounds)
    try:
        with falling(patch), relayed(example=["203.0.113.9"]) as (keeper, _):
            attacker, other = (keeper.admit(each.sockets, table) for each in (evil, good))
            most = deaths.MOST if without else deaths.MOST_OF_ONE
            for _ in range(most):
                eventually(lambda: keeper.pid and keeper.confinement)
                before = keeper.pid
                evil.ask(attack)
                eventually(lambda before=before: keeper.pid != before)
            if without:
                eventually(lambda: good.ask("talk('db.internal', 82, b'x')") == errno.ECONNREFUSED)
                return
            eventually(lambda: good.ask("talk('db.internal', 82, b'x')") == "x")
            assert evil.ask("talk('198.18.0.5', 82)") == errno.ECONNREFUSED
            reason = attacker.connections().rows[-1]["reason"]
            assert reason == "its network was closed: what serves it died 3 times at what it did"
            with pytest.raises(SandboxError, match="no network any more"):
                attacker.set(table)
            other.close()
            attacker.close()
    finally:
        evil.close()
        good.close()
        served.close()


def test_it_keeps_its_network_where_another_killed_what_serves_it() -> None:
    """As the kernel does that is out of memory, whoever had what there is of it."""
    patch, attack = HOLES["what is said"]
    served, busy = Served(echo), Captured()
    bounds = EgressBounds(hosts=(StaticHost("db.internal", "127.0.0.1", served.port),))
    table = compile_table(["db.internal:*"], bounds)
    try:
        with falling(f"{WORK}{patch}"), relayed() as (keeper, _):
            admitted = keeper.admit(busy.sockets, table)
            for _ in range(deaths.MOST_OF_ONE):
                eventually(lambda: keeper._ready)
                process = keeper._process
                assert process is not None
                busy.begin(attack)
                eventually(lambda mark=process._mark: os.pread(mark, 8, 0) != bytes(8))
                os.kill(process.pid, signal.SIGKILL)
                busy.answer()
                eventually(lambda pid=process.pid: keeper.pid != pid)
            # A relay may be slow to come back: it is asked again, as programs do.
            eventually(lambda: busy.ask("talk('db.internal', 82, b'x')") == "x")
            admitted.close()
    finally:
        busy.close()
        served.close()


IN_TERMINATOR = """
import ctypes
from agentd.egress.terminator import ends
read = ends.ReadEnd.read
async def falling(self):
    data = await read(self)
    if b"crash" in data:
        ctypes.string_at(0)
    return data
ends.ReadEnd.read = falling
"""
GET = "GET /{} HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n"


def answer(sock: socket.socket) -> None:
    sock.recv(4096)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")


@pytest.mark.parametrize("without", ["", "attribution"])
def test_what_it_asks_crashes_what_reads_its_own_requests_alone(
    tmp_path: Path, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without:
        monkeypatch.setattr(processes.RelayProcess, "worked_for", lambda _: 0)
        monkeypatch.setattr(deaths, "WITHIN", 3600.0)  # a busy machine starts one in its own time
    package = terminating.MODULE.rpartition(".")[0]
    patched = f"{package} import main; exec({IN_TERMINATOR!r}, globals()); from {package}.main"
    monkeypatch.setattr(terminating, "MODULE", patched)
    rules = ["read api.example.com:80"]
    with (
        judging(tmp_path) as made,
        made.program(answer, rules, plain=True) as evil,
        made.program(answer, rules, plain=True) as good,
    ):
        reads = made.keeper.terminating
        fetch = f"attempt(once, {GET.format('page')!r}, 'api.example.com', 80)"
        assert good.ask(fetch).endswith("ok")
        crash = f"attempt(once, {GET.format('crash')!r}, 'api.example.com', 80)"
        for _ in range(deaths.MOST if without else deaths.MOST_OF_ONE):
            eventually(lambda: reads.pid and reads._ready)
            before = reads.pid
            evil.ask(crash)
            eventually(lambda before=before: reads.pid != before)
        if without:
            eventually(lambda: reads._failure)
            assert good.ask(fetch) == errno.ECONNRESET
            return
        eventually(lambda: str(good.ask(fetch)).endswith("ok"))
        assert evil.ask(fetch) == errno.ECONNRESET
        reason = "its requests are not read any more: what serves it died 3 times at what it did"
        assert reason in {row["reason"] for row in evil.rows()}


def test_what_reads_requests_and_hangs_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By: it is asked now and then whether it lives, as the relay is."""
    monkeypatch.setattr(terminating, "_LOOK_SECONDS", 0.1)
    rules = ["read api.example.com:80"]
    with judging(tmp_path) as made, made.program(answer, rules, plain=True) as program:
        reads = made.keeper.terminating
        fetch = f"attempt(once, {GET.format('page')!r}, 'api.example.com', 80)"
        assert program.ask(fetch).endswith("ok")
        before = reads.pid
        os.kill(before, signal.SIGSTOP)
        monkeypatch.setattr(terminating, "_HANG_SECONDS", 0.5)
        eventually(lambda: reads.pid not in (0, before))
        monkeypatch.setattr(terminating, "_HANG_SECONDS", 60.0)
        eventually(lambda: str(program.ask(fetch)).endswith("ok"))
