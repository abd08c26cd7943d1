"""What serves networks finds no room for what it has to say: it says that later."""

import asyncio
import errno
import socket
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
from tests.captured import eventually
from tests.unit.egress.terminator.test_cassettes import CLOSE, OK, RECORD, answering
from tests.unit.egress.terminator.world import HOST, judging

from agentd.egress import process, terminating
from agentd.egress.terminator.terminator import RelayLink

TIMES = 3
SHORT = """
import socket
send, left = socket.socket.{call}, [{times}]
def short(self, data, *more):
    said = data if isinstance(data, bytes) else data[0]
    if left[0] and self.family == socket.AF_UNIX and said.startswith({begin!r}):
        left[0] -= 1
        raise OSError({why}, "no room")
    return send(self, data, *more)
socket.socket.{call} = short
"""


def short_of_room(monkeypatch: pytest.MonkeyPatch, where: object, call: str, begin: bytes) -> None:
    """Whoever begins then has no room for the first few of what begins so."""
    code = SHORT.format(call=call, times=TIMES, begin=begin, why=errno.ETOOMANYREFS)
    module = where.MODULE  # type: ignore[attr-defined]
    monkeypatch.setattr(where, "MODULE", f"{module} import main; exec({code!r}); from {module}")


@pytest.mark.parametrize(
    ("where", "call", "begin"),
    [
        (process, "sendmsg", b'{"n"'),
        (process, "send", b'{"rows"'),
        (terminating, "send", b'{"ended"'),
        (terminating, "send", b'{"rows"'),
    ],
    ids=["a connection to read", "what is told of it", "its end", "what was asked over it"],
)
def test_what_finds_no_room_just_now_is_neither_lost_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: object, call: str, begin: bytes
) -> None:
    tmp_path.chmod(0o755)
    short_of_room(monkeypatch, where, call, begin)
    with judging(tmp_path) as world, world.program(answering(OK, OK), RECORD) as it:
        for _ in range(2):
            assert str(it.ask(f"once({CLOSE!r})")).endswith("ok"), it.rows()

        def told() -> bool:
            rows = [row for row in it.rows() if row["name"] == HOST]
            asked = [row for row in rows if "method" in row]
            return len(asked) == 2 and len(rows) == 4 and all(row["ended"] for row in rows)

        eventually(told)


def test_who_hands_a_sandbox_over_and_finds_no_room_ends_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    send, left = socket.send_fds, [TIMES]

    def short(sock: socket.socket, data: Any, fds: Any, *more: Any) -> int:
        if left[0] and fds:
            left[0] -= 1
            raise OSError(errno.ETOOMANYREFS, "no room")
        return send(sock, data, fds, *more)

    with judging(tmp_path) as world:
        before = world.keeper.pid, world.keeper.terminating.pid
        monkeypatch.setattr(socket, "send_fds", short)
        with world.program(answering(OK), RECORD) as it:
            assert str(it.ask(f"once({CLOSE!r})")).endswith("ok"), it.rows()
        assert (world.keeper.pid, world.keeper.terminating.pid) == before
    assert left == [0]


def test_who_rests_for_want_of_room_is_not_asked_to_go_on_all_the_time() -> None:
    """As by a socket that is no longer full."""

    async def rests() -> bool:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            link, said = RelayLink(cast("Any", None), ours), 0
            while not link._unsent:
                link.ended(1, "x" * 300, (0, 0))
                said += 1
            with pytest.MonkeyPatch.context() as patch:
                send = Mock(side_effect=OSError(errno.ENOBUFS, "no room"))
                patch.setattr(link, "_sock", Mock(fileno=ours.fileno, send=send))
                for _ in range(said - 1):
                    theirs.recv(4096)
                while not send.called:
                    await asyncio.sleep(0.01)
            still = loop.remove_writer(ours.fileno())
            while link._unsent:
                await asyncio.sleep(0.01)
            assert theirs.recv(4096)
            loop.remove_reader(ours.fileno())
            return still

    assert asyncio.run(asyncio.wait_for(rests(), 60)) is False
