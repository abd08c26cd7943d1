"""What a host keeps of what a relay tells is bounded, whatever that says."""

import json
import socket
from types import SimpleNamespace
from typing import Any

from agentd.egress import connections
from agentd.egress.admitted import Admitted
from agentd.egress.connections import ConnectionLog
from agentd.egress.keeper import RelayKeeper
from agentd.egress.relay.loop import EventLoop
from agentd.egress.relay.passing import Passing
from agentd.egress.relay.records import Reports
from agentd.egress.relay.tenant import Tenant
from agentd.egress.rows import RowQueue
from agentd.egress.table import EgressTable


def row(n: int, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"n": n, "name": f"n{n}", "address": "", "port": 1, "rule": ""}
    return made | {"allowed": True, "reason": "", "ended": True} | more


def test_of_a_log_the_last_rows_are_kept_and_so_many_hosts() -> None:
    log = ConnectionLog()
    for n in range(1, connections.MOST + 11):
        log.take(1, row(n, reason="x" * 100_000))
    found = log.after(0)
    assert [each["n"] for each in found.rows] == list(range(11, connections.MOST + 11))
    assert max(len(each["reason"]) for each in found.rows) == 400
    assert found.totals["allowed"] == connections.MOST + 10
    assert len(found.hosts) == 256
    log.take_request(row(1) | {"method": "G" * 9999, "path": "/" * 9999, "status": 200})
    last = log.after(0).rows[-1]
    assert len(last["method"]) == len(last["path"]) == 400


def test_of_names_that_it_says_were_given_so_many_are_kept() -> None:
    admitted = Admitted(RelayKeeper(), 1, [], {})
    for n in range(2000):
        admitted.hear(1, {"named": f"n{n}" + "x" * 9999})
    assert len(admitted.names) == 1024
    assert max(map(len, admitted.names)) == 253


def test_denials_that_differ_are_told_a_few_times_and_then_counted() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loop = EventLoop(lambda _: None)
    with ours, theirs:
        reports = Reports(loop, theirs)
        tenant = Tenant(1, EgressTable({"rules": [], "hosts": {}}), [], loop, reports)
        for n in range(300):
            reports.denied(tenant, (n,), row(n, sandbox=1, allowed=False))
        reports.sync(1)
        found: list[dict[str, Any]] = []
        while "synced" not in (message := json.loads(ours.recv(1 << 20))):
            found += message["rows"]
    loop._epoll.close()
    assert len(found) == 257
    assert found[-1] == {"sandbox": 1, "repeats": 300 - 256}


def test_what_is_to_be_told_at_once_is_kept_where_nobody_takes_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        queue = RowQueue(theirs, lambda *_: None)
        told = 0
        while not queue._rows:  # until the host's end is full
            queue.tell_now({"named": told})
            told += 1
        queue.fault("x" * 9999)
        found: list[dict[str, Any]] = []
        while len(found) < told + 1:
            found += json.loads(ours.recv(1 << 20)).get("rows", ())
            queue.sync(1)
    assert [each["named"] for each in found[:-1]] == list(range(told))
    assert len(found[-1]["fault"]) == 2000


def test_where_nobody_reads_what_is_passed_waits_and_can_be_taken_back() -> None:
    loop = EventLoop(lambda _: None)
    passing = Passing(loop)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def connection(n: int) -> Any:
        return SimpleNamespace(n=n, name="a", port=1, tenant=SimpleNamespace(budget=None))

    with ours:
        ends = ours.fileno(), ours.fileno()
        why = passing.take(connection(1), 1, ends)
        assert why == "what reads its requests is not there now"
        passing.link(theirs)
        n = 0
        while not passing._waiting:  # until its end is full
            n += 1
            assert passing.take(connection(n), 1, ends) == ""
        assert passing.take_back(n) and not passing._waiting
        assert not passing.take_back(1)  # it is who reads it that ends it
        for each in range(1, n):
            passing.forget(each)
        passing._unlink()
    loop._epoll.close()
