"""What the terminator has to tell is bounded, faults too, where the host takes nothing; and that
all was told is told behind it."""

import asyncio
import json
import socket

from agentd.egress.terminator.records import RequestRecords

COUNT, MOST = 6000, 4096


def test_faults_that_nobody_takes_are_dropped_and_counted() -> None:
    async def told(host: socket.socket, control: socket.socket) -> tuple[list[str], int]:
        records = RequestRecords(control)
        for n in range(COUNT):
            records.fault(f"fault {n}")
        found: list[str] = []
        lost = 0
        while len(found) + lost < COUNT:
            records.sync(1)  # as much as the socket takes
            message = json.loads(host.recv(1 << 20))
            found += [row["fault"] for row in message.get("rows", ())]
            lost += message.get("lost", 0)
        return found, lost

    host, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with host, control:
        host.settimeout(120)
        found, lost = asyncio.run(told(host, control))
    assert (len(found), lost) == (MOST, COUNT - MOST)
    assert found == [f"fault {n}" for n in range(COUNT - MOST, COUNT)]


def test_that_all_was_told_is_told_behind_it_once_the_host_takes_it() -> None:
    """Else it is killed a minute later, as one that hangs: it owes an answer that never comes."""

    async def told(host: socket.socket, control: socket.socket) -> list[object]:
        records = RequestRecords(control)
        for n in range(MOST):
            records.fault(f"fault {n} " + "x" * 1000)
        records.sync(7)  # the host takes nothing: it stands still
        found: list[object] = []
        while "synced" not in found:
            message = await asyncio.get_running_loop().sock_recv(host, 1 << 20)
            found += json.loads(message)
        return found

    host, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with host, control:
        host.setblocking(False)
        found = asyncio.run(asyncio.wait_for(told(host, control), 60))
    assert found.count("rows") > 10, found
    assert found[-1] == "synced"
