"""What a sandbox may move in all, and a second; a relay that dies forgets nothing of it."""

import errno
import os
import signal
import time
from typing import Any

from tests.captured import echo, eventually, relayed
from tests.unit.egress.test_relay import RESET, host, inside, rows, served

from agentd.egress.compile import compile_table
from agentd.model.egress import EgressBounds, StaticHost

__all__ = ["host", "inside", "served"]  # fixtures


def table(port: int, **budget: int) -> dict[str, Any]:
    hosts = (StaticHost("db.internal", "127.0.0.1", port),)
    return compile_table(["db.internal:*"], EgressBounds(hosts=hosts, **budget))


def test_what_it_may_move_in_all_is_never_exceeded(host, inside, served) -> None:
    keeper, _ = host
    port = served(echo).port
    admitted = keeper.admit(inside.sockets, table(port, net_bytes=100_000))
    assert inside.ask("len(whole('db.internal', 5432, b'x' * 20000))") == 20_000
    # It says that it has said all, and may be cut off before that.
    assert inside.ask("whole('db.internal', 5432, b'x' * 60000)") in (RESET, errno.ENOTCONN)
    eventually(lambda: all(row["ended"] for row in admitted.connections().rows))
    totals = admitted.connections().totals
    assert 40_000 <= totals["sent"] + totals["received"] <= 100_000
    assert inside.ask("talk('db.internal', 5432, b'more')") == RESET
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
