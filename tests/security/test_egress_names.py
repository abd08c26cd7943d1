"""Threat: names that are asked for fill the relay, have it ask without end, or are answered by who
was not asked.

Controls: each test names its own; with that left out it fails.
"""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from tests.captured import Captured, Names, Served, echo, relayed
from tests.security.test_egress_bounds import captured, patient

from agentd.egress.compile import compile_table
from agentd.egress.relay import dns

_RESOLVER = "from agentd.egress.relay import resolver; "


@contextlib.contextmanager
def asking(*rules: str, more: str = "pass", **known: Any) -> Iterator[tuple[Captured, Names]]:
    """A sandbox with these rules, whose relay runs ``more`` first, and the host's name server."""
    with patient(more), relayed(**known) as (keeper, names), captured() as inside:
        admitted = keeper.admit(inside.sockets, compile_table(rules))
        yield inside, names
        admitted.close()


def _heard(names: Names) -> list[tuple[bytes, int]]:
    """Each query that reaches the server from now on, and the port that it came from."""
    found: list[tuple[bytes, int]] = []
    reply = names.reply

    def heard(message: bytes) -> bytes:
        found.append((message, names.place[1]))
        return reply(message)

    names.reply = heard  # type: ignore[method-assign]
    return found


def _silent(names: Names) -> list[tuple[str, int]]:
    """What the server is asked from now on, which it does not answer."""

    def silent(message: bytes) -> bytes:
        asked = dns.parse_query(message)
        names.asked.append((asked.name, asked.kind))
        return b""

    names.reply = silent  # type: ignore[method-assign]
    return names.asked


def test_who_answers_has_to_guess_a_number_capitals_and_a_port() -> None:
    """By: each of them is drawn anew for each query."""
    with asking("*.evil.example", evil_example=["203.0.113.9"]) as (inside, names):
        heard = _heard(names)
        assert inside.ask("[resolve(f'n{at}.evil.example')[0] for at in range(20)]") == [0] * 20
    assert len({message[:2] for message, _ in heard}) > 10
    assert len({port for _, port in heard}) > 10
    domains = {message[12 + 1 + message[12] :] for message, _ in heard}
    assert len(domains) > 10  # all are .evil.example


def test_aliases_that_never_end_are_followed_a_few_times() -> None:
    """By: the aliases that one name may have, each of which is asked for by itself."""
    with asking("n0.example") as (inside, names):

        def alias(message: bytes) -> bytes:
            asked = dns.parse_query(message)
            names.asked.append((asked.name, asked.kind))
            label = f"n{len(names.asked)}".encode()
            target = bytes((len(label),)) + label + b"\7example\0"
            answer = dns.answer(asked, dns.NOERROR)
            record = b"\xc0\x0c\0\5\0\1\0\0\0\x3c" + len(target).to_bytes(2, "big") + target
            return answer[:6] + b"\0\1" + answer[8:] + record

        names.reply = alias  # type: ignore[method-assign]
        assert inside.ask("resolve('n0.example')") == [0, ""]
        kinds = [kind for _, kind in names.asked]
        assert kinds == [dns.A] * 9 + [dns.AAAA] * 9


def test_a_server_that_does_not_answer_is_not_asked_for_ever() -> None:
    """By: the tries that a server has."""
    soon = f"{_RESOLVER}resolver._PATIENCE = (0.05,)"
    with asking("far.example", more=soon) as (inside, names):
        asked = _silent(names)
        assert inside.ask("resolve('far.example')") == [dns.SERVFAIL, ""]
        assert asked == [("far.example", dns.A)] * 3


def test_all_sandboxes_ask_for_so_many_names_at_once() -> None:
    """By: the exchanges that the relay has under way, each of which has a descriptor."""
    few = f"{_RESOLVER}resolver._PATIENCE, resolver.MAX_PENDING = (600.0,), 20"
    with asking("*.far.example", more=few) as (inside, names):
        asked = _silent(names)
        inside.ask("kept.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))")
        inside.ask("kept[0].settimeout(60)")
        inside.ask("kept[0].connect(('9.9.9.9', 53))")
        inside.ask("[kept[0].send(query(f'n{at}.far.example')) for at in range(50)]")
        codes = inside.ask("[kept[0].recv(4096)[3] & 15 for _ in range(30)]")
        assert codes == [dns.SERVFAIL] * 30
        assert len(set(asked)) <= 20


def test_what_was_answered_is_kept_of_so_many_names() -> None:
    """By: the oldest go, beyond a number."""
    few = f"{_RESOLVER}resolver._MAX_CACHED = 3"
    with asking("*.far.example", more=few, far_example=["203.0.113.9"]) as (inside, names):
        for name in ("a", "b", "c", "d", "d", "a"):
            assert inside.ask(f"resolve('{name}.far.example')")[0] == 0
        asked = [name for name, _ in names.asked]
        assert [asked.count(f"{name}.far.example") for name in "abcd"] == [2, 1, 1, 1]


def test_no_answer_holds_for_longer_than_half_a_minute() -> None:
    """By: what its server says of that is cut: other rules are to be seen soon."""
    with asking("far.example", far_example=["203.0.113.9"]) as (inside, names):
        names.ttl = 86400
        answer = inside.ask("ask(query('far.example'))").encode("latin-1")
        assert 1 <= int.from_bytes(answer[-10:-6], "big") <= 30


def test_names_that_are_asked_about_are_bounded_without_being_looked_up() -> None:
    """By: the addresses that names of a wildcard have, however the rule has them exist."""
    few = "from agentd.egress.relay import synthetic; synthetic.MAX_WILD = 20"
    with asking("ask *.evil.example", more=few) as (inside, names):
        codes = inside.ask("[resolve(f'data{at}.evil.example')[0] for at in range(30)]")
        assert codes == [dns.NOERROR] * 20 + [dns.SERVFAIL] * 10
        assert names.asked == []


def test_where_nothing_takes_ipv6_no_such_address_is_told() -> None:
    """By: it is looked whether the sandbox has a socket for it, or clients would try in vain."""
    with relayed(six_example=["2001:db8::9"]) as (keeper, _), captured() as inside:
        kept = [each for each in inside.sockets if each.family == socket.AF_INET]
        for each in set(inside.sockets) - set(kept):
            each.close()
        admitted = keeper.admit(kept, compile_table(["six.example"]))
        assert inside.ask("resolve('six.example', 28)") == [0, ""]
        assert inside.ask("resolve('six.example')")[1].startswith("198.")
        admitted.close()


def test_of_one_names_addresses_four_are_tried() -> None:
    """By: a bound; a name could have a connection tried at whole networks else. Where addresses
    are looked at is left out: these are the host's own."""
    off = "from agentd.egress.relay.targets import Finder; Finder.hindrance = lambda *_: ''"
    served = Served(echo)
    addresses = [f"127.0.0.{at}" for at in (2, 3, 4, 5, 1)]
    try:
        for count, got in ((4, "x"), (5, 104)):
            known = {"many.example": addresses[-count:]}
            with asking(f"many.example:{served.port}", more=off, **known) as (inside, _):
                assert inside.ask(f"talk('many.example', {served.port}, b'x')") == got
    finally:
        served.close()
