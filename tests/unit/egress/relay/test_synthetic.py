"""Addresses that stand for names."""

import socket

from agentd.egress.relay import synthetic
from agentd.egress.relay.synthetic import MAX_NAMES, MAX_WILD, Synthetic


def test_a_name_has_one_address_a_family_and_it_names_it() -> None:
    names = Synthetic()
    number = names.give("pypi.org", wild=False)
    assert number is not None
    for family, start in ((socket.AF_INET, "198.1"), (socket.AF_INET6, "fd61:6765:6e74:")):
        address = synthetic.packed(number, family)
        assert socket.inet_ntop(family, address).startswith(start)
        assert synthetic.number_of(address) == number
    assert names.name(number) == "pypi.org"
    assert names.give("pypi.org", wild=False) == number


def test_another_relay_gives_the_same() -> None:
    first, second = Synthetic(), Synthetic()
    for names in (["a.example", "b.example"], ["b.example", "a.example"]):
        for name in names:
            assert first.give(name, wild=False) == second.give(name, wild=False)


def test_no_two_names_have_one_and_they_are_bounded() -> None:
    names = Synthetic()
    given = [names.give(f"n{at}.example", wild=False) for at in range(MAX_NAMES)]
    assert len(set(given)) == MAX_NAMES
    assert None not in given
    assert names.give("more.example", wild=False) is None
    assert names.give("n1.example", wild=False) == given[1]


def test_what_a_wildcard_allows_is_bounded_further() -> None:
    names = Synthetic()
    given = [names.give(f"n{at}.example", wild=True) for at in range(MAX_WILD + 1)]
    assert given[-1] is None
    assert names.give("whole.example", wild=False) is not None


def test_addresses_of_others() -> None:
    for text in ("198.17.255.255", "198.20.0.0", "fd61:6765:6e75::1", "8.8.8.8", "::1"):
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        assert synthetic.number_of(socket.inet_pton(family, text)) is None
