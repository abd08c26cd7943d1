"""Other rules for a sandbox that lives: for what it remembers and has open, and for a relay that
comes later."""

import contextlib
import errno
import os
import signal
from collections.abc import Iterator

import pytest
from tests.captured import Captured, Served, echo, eventually, relayed
from tests.unit.egress.test_relay import table

from agentd.egress import keeper as keepers
from agentd.egress import process
from agentd.egress.compile import compile_table
from agentd.egress.relay import dns

RESET, REFUSED = errno.ECONNRESET, errno.ECONNREFUSED


@pytest.fixture
def inside() -> Iterator[Captured]:
    captured = Captured()
    yield captured
    captured.close()


@pytest.fixture
def port() -> Iterator[int]:
    served = Served(echo)
    yield served.port
    served.close()


@pytest.mark.parametrize("killed", [False, True])
def test_they_hold_for_addresses_that_are_remembered(
    inside: Captured, port: int, killed: bool
) -> None:
    """The next relay is told the rules of now, and not those that the sandbox was made with."""
    hosts = {"a_internal": port, "b_internal": port}
    both = ("a.internal:1", "b.internal:1")
    with relayed() as (keeper, _):
        admitted = keeper.admit(inside.sockets, table(*both, **hosts))
        a, b = (inside.ask(f"resolve('{name}.internal')")[1] for name in "ab")
        for address in (a, b):
            assert inside.ask(f"talk({address!r}, 1, b'x')") == "x"
        admitted.set(table("b.internal:1", **hosts))
        if killed:
            before = keeper.pid
            os.kill(before, signal.SIGKILL)
            eventually(lambda: keeper.pid not in (0, before))
        assert inside.ask(f"talk({b!r}, 1, b'x')") == "x"
        assert inside.ask(f"talk({a!r}, 1, b'x')") in (RESET, REFUSED)
        admitted.set(table(*both, **hosts))
        assert inside.ask(f"talk({a!r}, 1, b'x')") == "x"


def test_what_is_open_to_an_operators_host_ends_where_that_is_another(
    inside: Captured, port: int
) -> None:
    with relayed() as (keeper, _):
        admitted = keeper.admit(inside.sockets, table("db.internal:1", db_internal=port))
        assert inside.ask("keep('db.internal', 1)") == 0
        admitted.set(table("db.internal:1", db_internal=port + 1 if port < 65535 else 1))
        assert inside.ask("kept[0].recv(1)") == RESET


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("GET db.internal:1/v1/*", "its requests are read"),
        ("ask db.internal:1", "it has to be asked about"),
        ("!db.internal", "denied by !db.internal"),
    ],
)
def test_what_is_open_ends_where_it_is_to_be_read_or_asked_about_or_denied(
    inside: Captured, port: int, rule: str, why: str
) -> None:
    with relayed() as (keeper, _):
        admitted = keeper.admit(inside.sockets, table("db.internal:1", db_internal=port))
        assert inside.ask("keep('db.internal', 1)") == 0
        assert inside.ask("kept[0].send(b'x') and kept[0].recv(1)") == "x"
        admitted.set(table(rule, "db.internal:2", db_internal=port))
        assert inside.ask("kept[0].recv(1)") == RESET
        (row,) = [row for row in admitted.connections().rows if row["port"] == 1]
        assert row["reason"] == f"the rules were changed: {why}"


def test_a_relay_that_was_ended_for_want_of_sandboxes_has_not_died(
    inside: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever needs one just when it is ended gets the next, as often as that happens."""
    shut = process.RelayProcess.shut
    with relayed() as (keeper, _):

        def shut_and_begin(self: process.RelayProcess) -> None:
            shut(self)
            keeper.begin()

        with monkeypatch.context() as patched:
            patched.setattr(process.RelayProcess, "shut", shut_and_begin)
            for _ in range(7):
                before = keeper.pid
                keeper.rest()
                eventually(lambda before=before: keeper.pid not in (0, before))
        admitted = keeper.admit(inside.sockets, table())
        assert inside.ask("attempt(talk, '8.8.8.8', 1)") in (RESET, REFUSED)
        assert admitted.connections().totals["denied"]


def test_other_names_of_the_machine_hold_however_much_there_is_to_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the relay says something all the time, too."""
    monkeypatch.setattr(keepers, "_LOOK_SECONDS", 1.0)
    with relayed() as (keeper, names), contextlib.closing(Captured()) as inside:
        admitted = keeper.admit(inside.sockets, compile_table(["late.example:7"]))
        assert inside.ask("resolve('late.example')")[0] == dns.NXDOMAIN
        before = names.read()
        names.read = lambda: before._replace(hosts={"late.example": ["203.0.113.9"]})  # type: ignore[method-assign]
        names.changed = lambda: True  # type: ignore[method-assign]

        def known() -> bool:
            return bool(inside.ask("resolve('late.example')")[0] == dns.NOERROR)

        eventually(lambda: admitted.connections() and known())
        admitted.close()


def test_a_sandbox_of_many_names_ends_no_network_with_its_relay(port: int) -> None:
    """Where they and its rules have no room in one message to the next relay."""
    with (
        relayed() as (keeper, _),
        contextlib.closing(Captured()) as inside,
        contextlib.closing(Captured()) as other,
    ):
        admitted = keeper.admit(inside.sockets, table("db.internal:*", db_internal=port))
        second = keeper.admit(other.sockets, table("db.internal:*", db_internal=port))
        admitted.names |= dict.fromkeys(f"n{n}.{'x' * 200}" for n in range(1000))
        pid = keeper.pid
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: keeper.pid != pid and keeper._ready)
        for each in (inside, other):
            assert each.ask("talk('db.internal', 1, b'hello')") == "hello"
        admitted.close()
        second.close()
