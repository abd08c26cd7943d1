"""Threat: one sandbox takes what the relay has for all, where nobody answers.

Controls: what one may have under way at once; each test names it."""

import contextlib
import socket
import time
from collections.abc import Iterator

from tests.captured import Captured, Names, eventually, relayed

from agentd.egress import process as processes
from agentd.egress.compile import compile_table
from agentd.egress.relay import dns
from agentd.model.egress import EgressBounds, StaticHost


@contextlib.contextmanager
def patient(more: str) -> Iterator[None]:
    """Relays that wait for so long that no busy machine has them give up meanwhile."""
    before = processes.MODULE
    processes.MODULE = f"{before} import main; {more}; from {before}"
    try:
        yield
    finally:
        processes.MODULE = before


@contextlib.contextmanager
def captured() -> Iterator[Captured]:
    made = Captured()
    try:
        yield made
    finally:
        made.close()


def test_hosts_that_do_not_answer_take_only_so_many_connections() -> None:
    """By: the connections that one sandbox may have in the making."""
    waits = "from agentd.egress.relay import connection; connection.START_SECONDS = 600"
    with (
        patient(waits),
        relayed() as (keeper, _),
        captured() as inside,
        # Nobody accepts there: what is beyond its queue is never connected.
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
    ):
        host = StaticHost("db.internal", "127.0.0.1", full.getsockname()[1])
        table = compile_table(["db.internal:1"], EgressBounds(hosts=(host,)))
        admitted = keeper.admit(inside.sockets, table)
        address = inside.ask("resolve('db.internal')")[1]
        inside.ask(f"len([attempt(keep, '{address}', 1) for _ in range(200)])")
        eventually(lambda: admitted.connections().totals["denied"] >= 60)
        reasons = {row["reason"] for row in admitted.connections().rows}
        assert "128 connections of the sandbox are being made" in reasons
        admitted.close()


def test_a_server_that_does_not_answer_is_asked_for_only_so_many_names() -> None:
    """By: the names that one sandbox may have asked for at the same time."""
    waits = "from agentd.egress.relay import resolver; resolver._PATIENCE = (600.0,) * 3"

    with patient(waits), relayed() as (keeper, names), captured() as inside:
        names.reply = lambda message: _silent(names, message)  # type: ignore[method-assign]
        admitted = keeper.admit(inside.sockets, compile_table(["*.far.example"]))
        inside.ask("kept.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))")
        inside.ask("kept[0].settimeout(60)")
        inside.ask("kept[0].connect(('9.9.9.9', 53))")
        sent = "[kept[0].send(query(f'n{at}.far.example')) for at in range(100)]"
        assert len(inside.ask(sent)) == 100
        codes = inside.ask("[kept[0].recv(4096)[3] & 15 for _ in range(36)]")
        assert codes == [dns.SERVFAIL] * 36
        eventually(lambda: len(set(names.asked)) == 64)
        admitted.close()


def test_what_one_sandbox_has_looked_up_leaves_others_theirs() -> None:
    """By: the names that are asked for at one sandbox's doing, for connections that ended, too."""
    few = "from agentd.egress.relay import resolver; resolver._PATIENCE = (600.0,) * 3; "
    few += "resolver.MAX_PENDING, resolver.MAX_PENDING_OF_ONE = 60, 20"
    known = {"evil_example": ["203.0.113.9"], "far_example": ["203.0.113.9"]}
    with (
        patient(few),
        relayed(**known) as (keeper, names),
        captured() as inside,
        captured() as other,
    ):
        names.ttl = 1
        admitted = keeper.admit(inside.sockets, compile_table(["*.evil.example:7"]))
        second = keeper.admit(other.sockets, compile_table(["far.example:7"]))
        inside.ask("kept.extend(resolve(f'n{at}.evil.example')[1] for at in range(80))")
        time.sleep(1.5)  # what was answered is known for a second
        reply = names.reply
        silent = lambda said: b"" if b"evil" in said.lower() else reply(said)  # noqa: E731
        names.reply = silent  # type: ignore[method-assign]
        inside.ask("[attempt(dial, address, 7) is None for address in kept]")
        eventually(lambda: admitted.connections().totals["allowed"] >= 80)
        assert other.ask("resolve('far.example')")[0] == dns.NOERROR
        admitted.close()
        second.close()


def _silent(names: Names, message: bytes) -> bytes:
    asked = dns.parse_query(message)
    names.asked.append((asked.name, asked.kind))
    return b""
