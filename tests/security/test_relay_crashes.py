"""Threat: a sandbox that has found what crashes the relay closes the network of all others by it.

Control: the relay says in memory of its host's for whom it does something, so that the host knows
at whose doing it died, and has that one served no more.
"""

import contextlib
import errno
from collections.abc import Iterator

import pytest
from tests.captured import Captured, Served, echo, eventually, relayed

from agentd.egress import deaths
from agentd.egress import process as processes
from agentd.egress.compile import compile_table
from agentd.model.egress import EgressBounds, StaticHost
from agentd.model.errors import SandboxError

RELAY = processes.MODULE
# Relays with a hole each, by what it is that they fall over.
CRASH = "import ctypes; fall = lambda found: ctypes.string_at(0) if found else None; "
REQUEST = b"GET /crash HTTP/1.1\r\nHost: db.internal\r\n\r\n"
# It awaits no answer.
ASK = (
    "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
    ".sendto(query('x.crash.example'), ('9.9.9.9', 53))"
)
HOLES = {
    "what is said": (
        (
            "from agentd.egress.relay import hello; host = hello.host; "
            "hello.host = lambda data: (fall(b'crash' in data), host(data))[1]"
        ),
        f"talk('db.internal', 80, {REQUEST!r})",
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
            assert good.ask("talk('db.internal', 82, b'x')") == "x"
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
