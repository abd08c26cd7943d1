"""What the terminator has to tell is bounded, faults too, where the host takes nothing."""

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
