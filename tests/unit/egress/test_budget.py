"""What a sandbox may move in all, and a second; a relay that dies forgets nothing of it."""

import errno
import os
import signal
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

from tests.captured import echo, eventually, relayed
from tests.unit.egress.test_relay import RESET, host, inside, rows, served

from agentd.egress.compile import compile_table
from agentd.egress.relay.budget import TrafficBudget
from agentd.model.egress import EgressBounds, StaticHost

__all__ = ["host", "inside", "served"]  # fixtures


def table(port: int, **budget: int) -> dict[str, Any]:
    hosts = (StaticHost("db.internal", "127.0.0.1", port),)
    return compile_table(["db.internal:*"], EgressBounds(hosts=hosts, **budget))


def test_what_it_may_move_in_all_is_never_exceeded(host, inside, served) -> None:
    keeper, _ = host
    heard: list[socket.socket] = []
    port = served(lambda sock: (heard.append(sock), echo(sock))).port
    admitted = keeper.admit(inside.sockets, table(port, net_bytes=100_000))
    assert inside.ask("len(whole('db.internal', 5432, b'x' * 20000))") == 20_000
    # It says that it has said all, and may be cut off before that.
    assert inside.ask("whole('db.internal', 5432, b'x' * 60000)") in (RESET, errno.ENOTCONN)
    eventually(lambda: all(row["ended"] for row in admitted.connections().rows))
    totals = admitted.connections().totals
    assert 40_000 <= totals["sent"] + totals["received"] <= 100_000
    eventually(lambda: len(heard) == 2)
    assert inside.ask("talk('db.internal', 5432, b'more')") == RESET
    assert len(heard) == 2  # nobody was dialled
    last = admitted.connections().rows[-1]
    assert not last["allowed"]
    assert last["reason"] == "the sandbox has moved the 100000 bytes of its net_bytes"
    # Other rules give it nothing back, and more bytes do.
    admitted.set(table(port, net_bytes=100_000))
    assert inside.ask("talk('db.internal', 5432, b'more')") == RESET
    admitted.set(table(port, net_bytes=200_000))
    assert inside.ask("talk('db.internal', 5432, b'more')") == "more"
    admitted.set(table(port))
    assert inside.ask("len(whole('db.internal', 5432, b'x' * 300000))") == 300_000
    admitted.close()


def test_the_relay_that_follows_knows_what_was_moved(inside, served) -> None:
    port = served(echo).port
    with relayed() as (keeper, _):
        admitted = keeper.admit(inside.sockets, table(port, net_bytes=50_000))
        assert inside.ask("len(whole('db.internal', 5432, b'x' * 24000))") == 24_000
        rows(admitted, 1)
        os.kill(keeper.pid, signal.SIGKILL)
        cut_off = inside.ask("whole('db.internal', 5432, b'x' * 2000)")
        assert cut_off in (RESET, errno.ENOTCONN)
        eventually(lambda: inside.ask("talk('db.internal', 5432, b'more')") == RESET)
        admitted.close()


def test_what_connections_moved_that_are_open_as_a_relay_dies_is_not_forgotten(
    inside, served
) -> None:
    def pour(sock: socket.socket) -> None:
        sock.sendall(bytes(600_000))
        sock.recv(1)

    poured, port = served(pour).port, served(echo).port
    hosts = (
        StaticHost("far.internal", "127.0.0.1", poured),
        StaticHost("db.internal", "127.0.0.1", port),
    )
    rules = ["far.internal:1", "db.internal:*"]
    with relayed() as (keeper, _):
        bounds = EgressBounds(hosts=hosts, net_bytes=1_000_000)
        admitted = keeper.admit(inside.sockets, compile_table(rules, bounds))
        assert inside.ask("keep('far.internal', 1)") == 0
        pieces = "iter(partial(kept[0].recv, 1), b'')"
        assert inside.ask(f"sum(1 for _ in zip(range(600000), {pieces}))") == 600_000
        first = keeper.pid
        os.kill(first, signal.SIGKILL)
        eventually(lambda: keeper.pid not in (0, first))
        # Of the 400,000 that are left no more is lost than is told ahead.
        assert inside.ask("len(whole('db.internal', 5432, b'x' * 140000))") == 140_000
        assert inside.ask("whole('db.internal', 5432, b'x' * 300000)") in (RESET, errno.ENOTCONN)
        assert inside.ask("talk('db.internal', 5432, b'more')") == RESET
        admitted.close()


def test_a_rate_is_saved_up_for_a_second_and_taken_in_pieces() -> None:
    loop: Any = SimpleNamespace(now=0.0)
    rate = 1_000_000
    budget = TrafficBudget(loop, {"bytes": None, "rate": rate})
    loop.now += 3600
    found = 0
    while piece := budget.room(1 << 20):
        assert piece <= 64 << 10  # others have their turn
        budget.spend(piece)
        found += piece
    assert rate - 4096 < found <= rate
    # Not a byte at a time: it is waited for some.
    loop.now += 0.001
    assert budget.room(1 << 20) == 0
    loop.now += budget.seconds() + 0.001
    assert budget.room(1 << 20) >= 4096


def test_a_rate_is_not_had_anew_with_each_change_of_rules(host, inside, served) -> None:
    """A caller could have moved as much as it liked, whatever the operator's ``limits.max``."""
    keeper, _ = host
    rules = table(served(echo).port, net_rate=200_000)
    admitted = keeper.admit(inside.sockets, rules)
    moved = threading.Event()

    def change() -> None:
        while not moved.wait(0.02):
            admitted.set(rules)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        begun = time.monotonic()
        assert inside.ask("len(whole('db.internal', 5432, b'x' * 300000))") == 300_000
        assert time.monotonic() - begun >= 1.9
    finally:
        moved.set()
        changing.join()
    admitted.close()


def test_a_rate_holds_a_connection_up_and_loses_nothing(host, inside, served) -> None:
    keeper, _ = host
    port = served(echo).port
    admitted = keeper.admit(inside.sockets, table(port, net_rate=200_000))
    begun = time.monotonic()
    assert inside.ask("len(whole('db.internal', 5432, b'x' * 300000))") == 300_000
    # 600,000 bytes both ways, of which a second's go at once: however busy, it is no sooner.
    assert time.monotonic() - begun >= 1.9
    (row,) = rows(admitted, 1)
    assert (row["sent"], row["received"], row["reason"]) == (300_000, 300_000, "")
    admitted.close()


def test_many_connections_share_a_rate_in_turn(host, inside, served) -> None:
    keeper, _ = host
    port = served(lambda sock: sock.sendall(bytes(40_000))).port
    admitted = keeper.admit(inside.sockets, table(port, net_rate=400_000))
    # A second's go at once: of 20 connections some have to wait, and all are served in the end.
    assert inside.ask("[keep('db.internal', 5432) for _ in range(20)] and 0") == 0
    got = inside.ask("[sum(map(len, iter(partial(s.recv, 65536), b''))) for s in kept]")
    assert got == [40_000] * 20
    assert inside.ask("[s.close() for s in kept] and 0") == 0
    # What was waited for is not, once nothing bounds it any more.
    admitted.set(table(port, net_rate=1000))
    assert inside.ask("keep('db.internal', 5432)") == 20
    assert inside.ask("len(kept[20].recv(1))") == 1
    admitted.set(table(port))
    assert inside.ask("sum(map(len, iter(partial(kept[20].recv, 65536), b'')))") == 39_999
    admitted.close()


def test_where_nothing_is_bounded_no_budget_is_there() -> None:
    assert "budget" not in table(1)
