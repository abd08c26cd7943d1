"""What waits to be allowed, at the relay: nothing of it leaves, and an answer is of a place."""

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from tests.captured import Captured, Names, Served, echo, eventually, relayed
from tests.security.test_egress_bounds import patient
from tests.unit.egress.relay.test_hello import client_hello

from agentd.egress.admitted import Admitted
from agentd.egress.asked import AskedPlace
from agentd.egress.compile import compile_table
from agentd.egress.keeper import RelayKeeper
from agentd.model.egress import EgressBounds, StaticHost

RESET = errno.ECONNRESET


@pytest.fixture(scope="module")
def host() -> Iterator[tuple[RelayKeeper, Names]]:
    """Its names lead to nobody: a documentation network."""
    with relayed(**{"far.example": ["203.0.113.9"], "loop.example": ["127.0.0.1"]}) as found:
        yield found


@pytest.fixture(params=["sockets", "streams"])
def inside(request: pytest.FixtureRequest) -> Iterator[Captured]:
    captured = Captured(streams=request.param == "streams")
    yield captured
    captured.close()


class Asked(list[AskedPlace]):
    """What was asked about a sandbox, which is answered by the test."""

    def __init__(self, admitted: Admitted) -> None:
        super().__init__()
        self.admitted = admitted
        admitted.asked.asker = self.append

    def answer(self, place: AskedPlace, *, allowed: bool, seconds: float | None = None) -> None:
        self.admitted.asked.answer(place.host, place.port, allowed, "as it is said", seconds)


def _rows(admitted: Admitted) -> list[dict[str, Any]]:
    return [row for row in admitted.connections().rows if row["port"]]


def test_nothing_leaves_before_it_is_allowed(
    host: tuple[RelayKeeper, Names], inside: Captured
) -> None:
    keeper, names = host
    names.asked.clear()
    name = f"{'b' if inside.streams else 'a'}.loop.example"  # that was not looked up before
    with_table = compile_table([f"ask {name}:443", "ask *.nowhere.example"])
    admitted = keeper.admit(inside.sockets, with_table)
    asked = Asked(admitted)
    # There is a name, whether there is one or not, and nobody outside is asked.
    assert inside.ask("resolve('x.nowhere.example')")[1].startswith("198.18.")
    assert inside.ask("resolve('far.example')") == [3, ""]
    inside.begin(f"attempt(talk, {name!r}, 443, {client_hello(name)!r})")
    eventually(lambda: list(asked))
    assert list(asked) == [AskedPlace(name, 443, f"ask {name}:443")]
    assert names.asked == []
    (row,) = _rows(admitted)
    assert (row["allowed"], row["ended"], row["asked"]) == (False, False, True)
    asked.answer(asked[0], allowed=True)
    # It is resolved then, and what it leads to is looked at as ever.
    assert inside.answer() == RESET
    assert {each for each, _ in names.asked} == {name}
    (row,) = _rows(admitted)
    assert "loopback" in row["reason"]
    assert admitted.connections().totals["denied"] == 2  # and the name that no rule has
    admitted.close()


def test_who_it_talks_to_is_looked_at_while_it_waits(
    host: tuple[RelayKeeper, Names], inside: Captured
) -> None:
    admitted = host[0].admit(inside.sockets, compile_table(["ask far.example:443"]))
    Asked(admitted)
    hello = client_hello("evil.example")
    assert inside.ask(f"attempt(talk, 'far.example', 443, {hello!r})") == RESET
    (row,) = _rows(admitted)
    assert row["reason"] == "it dialled far.example and asks for evil.example"
    admitted.close()


def test_a_relay_that_dies_has_nobody_asked_again() -> None:
    with relayed() as (keeper, _), contextlib.closing(Captured()) as inside:
        _die_while_it_waits(keeper, inside)


def _die_while_it_waits(keeper: RelayKeeper, inside: Captured) -> None:
    served = Served(echo)
    bounds = EgressBounds(hosts=(StaticHost("db.internal", "127.0.0.1", served.port),))
    admitted = keeper.admit(inside.sockets, compile_table(["ask db.internal:5432"], bounds))
    asked = Asked(admitted)
    for _ in range(2):
        inside.begin("attempt(talk, 'db.internal', 5432, b'hello')")
        eventually(lambda: asked)
        eventually(lambda: not _rows(admitted)[-1]["ended"])
        os.kill(keeper.pid, signal.SIGKILL)
        assert inside.answer() == RESET
        eventually(lambda: _rows(admitted)[-1]["ended"])  # the keeper has seen it, too
    assert len(asked) == 1  # that one waits for its answer
    inside.begin("talk('db.internal', 5432, b'hello')")
    eventually(lambda: not _rows(admitted)[-1]["ended"])
    asked.answer(asked[0], allowed=True)
    assert inside.answer() == "hello"
    assert admitted.connections().totals["allowed"] == 1
    os.kill(keeper.pid, signal.SIGKILL)
    eventually(lambda: inside.ask("attempt(talk, 'db.internal', 5432, b'again')") == "again")
    assert len(asked) == 1
    sums = admitted.connections().totals
    assert sums["allowed"] == 2 and sums["asked"] >= 3 and sums["denied"] >= 2
    admitted.close()
    served.close()


def test_an_answer_that_comes_behind_its_rule_is_none(host: tuple[RelayKeeper, Names]) -> None:
    """The keeper tells both in turn, and not always in the order in which they were decided."""
    rule = compile_table(["ask far.example:443"])
    with contextlib.closing(Captured()) as inside:
        admitted = host[0].admit(inside.sockets, compile_table([]))
        asked = Asked(admitted)
        answer = {"host": "far.example", "port": 443, "allowed": True, "reason": ""}
        host[0].tell({"answer": admitted.id, **answer, "seconds": None})
        admitted.set(rule)
        inside.begin("attempt(talk, 'far.example', 443)")
        eventually(lambda: _rows(admitted))
        assert _rows(admitted)[-1]["reason"] == "it waits to be allowed"
        asked.admitted.close()


def test_answers_hold_as_long_as_they_say(host: tuple[RelayKeeper, Names]) -> None:
    inside = Captured()
    admitted = host[0].admit(inside.sockets, compile_table(["ask far.example:*"]))
    # Without anybody to ask it is refused, and that is not kept.
    assert inside.ask("attempt(talk, 'far.example', 81)") == RESET
    assert _rows(admitted)[-1]["reason"] == "nobody is there to be asked: it takes a daemon"
    asked = Asked(admitted)

    def refused(port: int, seconds: float | None) -> None:
        """It waits, and is told so."""
        count = len(asked)
        inside.begin(f"attempt(talk, 'far.example', {port})")
        eventually(lambda: len(asked) > count)
        asked.answer(asked[-1], allowed=False, seconds=seconds)
        assert inside.answer() == RESET
        assert _rows(admitted)[-1]["reason"] == "as it is said"

    refused(81, 0.0)
    refused(81, 0.0)  # it was of what waited alone
    refused(82, 600.0)
    assert inside.ask("attempt(talk, 'far.example', 82)") == RESET
    assert [each.port for each in asked] == [81, 81, 82]
    refused(83, 0.2)
    inside.begin("[attempt(talk, 'far.example', 83) for _ in range(8) if not sleep(0.1)][-1]")
    eventually(lambda: len(asked) == 5)  # once that was over
    asked.answer(asked[-1], allowed=False, seconds=600.0)
    assert inside.answer() == RESET
    # What nobody asks is not answered ahead.
    admitted.asked.answer("far.example", 84, True, "", None)
    assert admitted.connections().totals["allowed"] == 0
    admitted.close()
    inside.close()


def test_nobody_is_waited_for_for_longer_than_it_may_take() -> None:
    """Whatever becomes of whom the host asks."""
    soon = "from agentd.egress.relay import asking; asking.ASK_SECONDS = 0.3"
    with patient(soon), relayed() as (keeper, _), contextlib.closing(Captured()) as inside:
        admitted = keeper.admit(inside.sockets, compile_table(["ask far.example:443"]))
        asked = Asked(admitted)
        assert inside.ask("attempt(talk, 'far.example', 443)") == RESET
        (row,) = _rows(admitted)
        assert row["reason"] == "nobody has said within 0 s whether it is allowed"
        assert (row["allowed"], row["asked"], len(asked)) == (False, True, 1)
        admitted.close()
