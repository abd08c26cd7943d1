"""What programs are told at port 80 of what is not to be."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.captured import Captured, Served, echo, eventually, relayed
from tests.security.test_egress_bounds import captured, patient
from tests.unit.egress.test_relay import RESET, host, inside, rows, served, table

__all__ = ["host", "inside", "served"]  # fixtures

_GET = b"GET /x HTTP/1.1\r\nHost: %s\r\n\r\n"
_GONE = (32, 104)  # EPIPE, ECONNRESET


def _answer(inside: Captured, place: str, said: bytes = b"") -> tuple[str, dict[str, Any]]:
    """Status and error of what is told to a program that reads to the end."""
    told = inside.ask(f"whole({place!r}, 80, {said!r})")
    head, _, body = told.partition("\r\n\r\n")
    assert f"Content-Length: {len(body)}" in head
    return head.partition("\r\n")[0], json.loads(body)["error"]


def test_what_no_rule_allows_is_told_as_http_and_at_other_ports_reset(host, inside, served) -> None:
    port = served(echo).port
    rules = table("db.internal:1", "!web.internal:80", "web.internal:*", db_internal=port,
                  web_internal=port)  # fmt: skip
    admitted = host[0].admit(inside.sockets, rules)
    status, error = _answer(inside, "db.internal", _GET % b"db.internal")
    assert status == "HTTP/1.1 403 Forbidden"
    assert (error["code"], error["host"], error["port"]) == ("denied", "db.internal", 80)
    assert error["message"].endswith("db.internal:80: port 80 is not among 1")
    assert error["remediation"] == "allow it with --net 'db.internal:80'"
    denied = _answer(inside, "web.internal")[1]
    assert denied["rule"] == "!web.internal:80"
    assert denied["remediation"] == "leave that rule out, if it is to be allowed"
    # Others are reset: another port, a number.
    assert inside.ask("talk('db.internal', 81)") == RESET
    assert inside.ask("talk('169.254.169.254', 80)") == RESET
    assert len(rows(admitted, 4)) == 4
    admitted.close()


@pytest.fixture
def refused() -> Iterator[Any]:
    """A sandbox that is refused at port 80, whose relay runs a line first."""
    server = Served(echo)
    with captured() as program:

        def make(more: str) -> Iterator[Captured]:
            line = f"from agentd.egress.relay import refusal; {more}"
            with patient(line), relayed() as (keeper, _):
                admitted = keeper.admit(
                    program.sockets, table("db.internal:1", db_internal=server.port)
                )
                assert program.ask("keep('db.internal', 80)") == 0
                yield program
                admitted.close()
                eventually(lambda: program.ask(_SAYS) in _GONE)

        yield make
    server.close()


_SAYS = "[attempt(kept[0].send, b'x') for _ in range(3) if not sleep(0.02)][-1]"


def test_who_does_not_read_it_is_told_no_more_than_so_many_times(refused: Any) -> None:
    for program in refused("refusal.TOLD_SECONDS = 600"):
        found = program.ask("[attempt(talk, 'db.internal', 80) for _ in range(3)]")
        assert all(each.startswith("HTTP/1.1 403") for each in found)
        program.ask("[attempt(keep, 'db.internal', 80) for _ in range(49)] and 0")
        heard = program.ask("[attempt(each.recv, 12) for each in kept]")
        assert heard[:32] == ["HTTP/1.1 403"] * 32
        assert set(heard[32:]) <= {RESET}


@pytest.mark.parametrize("more", ["refusal.TOLD_SECONDS = 0.2", "refusal._MOST_HEARD = 3"])
def test_who_stays_or_says_much_is_not_waited_for(refused: Any, more: str) -> None:
    for program in refused(f"refusal.TOLD_SECONDS = 600; {more}"):
        eventually(lambda program=program: program.ask(_SAYS) in _GONE)


def test_it_ends_with_its_sandbox(refused: Any) -> None:
    for program in refused("refusal.TOLD_SECONDS = 600"):
        assert program.ask(_SAYS) == 1
