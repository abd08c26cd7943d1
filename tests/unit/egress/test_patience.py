"""How long the relay waits: with short times, for each of them to be over."""

import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from tests.captured import Captured, Served, echo, eventually, relayed

from agentd.egress import process
from agentd.egress.compile import compile_table
from agentd.model.egress import EgressBounds, StaticHost

if TYPE_CHECKING:
    from agentd.egress.admitted import Admitted

SHORT = (
    "from agentd.egress.relay import connection, relay; "
    "connection.START_SECONDS, connection.IDLE_SECONDS = {start}, {idle}; "
    "connection.HALF_SECONDS, connection.TOTAL_SECONDS = {half}, {total}; "
    "relay._SWEEP_SECONDS = 0.2"
)
USUAL = {"start": 600, "idle": 600, "half": 600, "total": 600}


class Waiting:
    """A sandbox whose relay waits for so long alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, serve: Any, **seconds: float) -> None:
        module, short = process.MODULE, SHORT.format(**{**USUAL, **seconds})
        monkeypatch.setattr(process, "MODULE", f"{module} import main; {short}; from {module}")
        self.server = Served(serve)
        self.inside = Captured()
        self._relayed = relayed()
        keeper, _ = self._relayed.__enter__()
        hosts = EgressBounds(hosts=(StaticHost("db.internal", "127.0.0.1", self.server.port),))
        table = compile_table(["db.internal:*"], hosts)
        self.admitted: Admitted = keeper.admit(self.inside.sockets, table)

    def reason(self) -> str:
        """Why the one connection that there was has ended."""

        def over() -> bool:
            return any(row["ended"] for row in self.admitted.connections().rows)

        eventually(over)
        (row,) = self.admitted.connections().rows
        return str(row["reason"])

    def close(self) -> None:
        self.admitted.close()
        self._relayed.__exit__(None, None, None)
        self.inside.close()
        self.server.close()


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Waiting] = []

    def make(serve: Any = echo, **seconds: float) -> Waiting:
        made.append(Waiting(monkeypatch, serve, **seconds))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("port", [443, 80])
def test_who_does_not_say_whom_it_talks_to_is_not_waited_for(waiting: Any, port: int) -> None:
    it = waiting(start=0.5)
    assert it.inside.ask(f"keep('db.internal', {port})") == 0
    assert "nothing whole" in it.reason()


def test_a_connection_over_which_nothing_is_said_ends(waiting: Any) -> None:
    it = waiting(idle=0.5)
    assert it.inside.ask("keep('db.internal', 1)") == 0
    assert it.inside.ask("kept[0].send(b'x') and kept[0].recv(1)") == "x"
    assert "nothing was said" in it.reason()


def test_a_silent_start_is_no_end_where_the_server_may_speak_first(waiting: Any) -> None:
    it = waiting(start=0.3, idle=2)
    assert it.inside.ask("keep('db.internal', 22)") == 0
    assert "nothing was said for" in it.reason()


def test_a_half_that_is_over_is_not_kept_for_long(waiting: Any) -> None:
    def shut(sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)

    it = waiting(shut, half=0.5)
    assert it.inside.ask("keep('db.internal', 1)") == 0
    assert it.inside.ask("kept[0].recv(1)") == ""
    assert "nothing was said" in it.reason()


def test_no_connection_lasts_for_ever(waiting: Any) -> None:
    it = waiting(total=0.5)
    assert it.inside.ask("keep('db.internal', 1)") == 0
    assert it.reason() == "it lasted 0 s"
