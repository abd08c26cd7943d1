"""Messages of DNS, whole and broken."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.egress.relay import dns


def asked(name: str, kind: int = dns.A, flags: int = 0x100, count: int = 1) -> bytes:
    head = struct.pack(">HHHHHH", 7, flags, count, 0, 0, 0)
    return head + wire(name) + struct.pack(">HH", kind, 1)


def wire(name: str) -> bytes:
    labels = [label.encode() for label in name.split(".")]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def record(owner: bytes, kind: int, data: bytes, ttl: int = 60) -> bytes:
    return owner + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


def reply(query: bytes, *records: bytes, code: int = 0) -> bytes:
    head = struct.pack(">HHHHHH", 7, 0x8180 | code, 1, len(records), 0, 0)
    return head + query[12:] + b"".join(records)


def test_a_question_and_its_answer() -> None:
    query = dns.parse_query(asked("PyPI.org"))
    assert (query.number, query.name, query.kind) == (7, "pypi.org", dns.A)
    sent = dns.query(7, [b"pYpI", b"org"], dns.A)
    answer = dns.answer(dns.parse_query(sent), dns.NOERROR, b"\x01\x02\x03\x04", 30)
    assert dns.parse_reply(answer, sent, exact=True) == (0, False, ("1.2.3.4",), "", 30)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\0" * 11, dns.FORMERR),
        (asked("a.b", flags=0x8100), dns.FORMERR),
        (asked("a.b", flags=0x2900), dns.NOTIMP),
        (asked("a.b", count=2), dns.FORMERR),
        (asked("a.b")[:-3], dns.FORMERR),
        (asked("a.b")[:12] + b"\xc0\x0c\0\1\0\1", dns.FORMERR),
        (asked("a.b")[:12] + b"\x40abc\0\0\1\0\1", dns.FORMERR),
        (asked(".".join(["a" * 63] * 4) + ".bcd"), dns.FORMERR),
        (asked("a b.c"), dns.NXDOMAIN),
        (asked("a.b")[:-2] + b"\0\3", dns.NOTIMP),
    ],
)
def test_a_malformed_query_is_told_so(message: bytes, code: int) -> None:
    with pytest.raises(dns.MalformedDns) as told:
        dns.parse_query(message)
    assert told.value.code == code


def test_aliases_lead_to_the_addresses() -> None:
    query = asked("a.example")
    pointer = b"\xc0\x0c"
    answer = reply(
        query,
        record(pointer, dns.CNAME, wire("b.example"), 5),
        record(wire("B.example"), dns.A, b"\1\1\1\1"),
        record(wire("b.example"), dns.A, b"\2\2\2\2"),
        record(wire("c.example"), dns.A, b"\3\3\3\3"),
    )
    found = dns.parse_reply(answer, query, exact=True)
    assert (found.addresses, found.ttl) == (("1.1.1.1", "2.2.2.2"), 5)


def test_an_alias_without_address_is_to_be_asked_for() -> None:
    query = asked("a.example")
    found = dns.parse_reply(reply(query, record(b"\xc0\x0c", 5, wire("b.test"))), query, exact=True)
    assert (found.addresses, found.alias) == ((), "b.test")


@pytest.mark.parametrize(
    "broken",
    [
        lambda answer: b"\0\x08" + answer[2:],  # another number
        lambda answer: answer[:12] + answer[12:].replace(b"a", b"A", 1),  # other capitals
        lambda answer: answer[:12] + answer[12:].replace(b"a", b"z", 1),  # another name
        lambda answer: answer[:2] + b"\1\0" + answer[4:],  # a query
        lambda answer: answer[:-1],  # a record that ends early
        lambda answer: answer[:7] + b"\2" + answer[8:],  # a record that is not there
    ],
)
def test_what_is_no_answer_to_it_is_not_taken(broken) -> None:  # type: ignore[no-untyped-def]
    query = asked("a.example")
    answer = reply(query, record(b"\xc0\x0c", dns.A, b"\1\1\1\1"))
    assert dns.parse_reply(answer, query, exact=True).addresses == ("1.1.1.1",)
    with pytest.raises(dns.MalformedDns):
        dns.parse_reply(broken(answer), query, exact=True)


def test_aliases_in_a_circle_and_pointers_in_one_end() -> None:
    query = asked("a.example")
    circle = [record(b"\xc0\x0c", 5, wire("b.x")), record(wire("b.x"), 5, wire("a.example"))]
    with pytest.raises(dns.MalformedDns, match="circle"):
        dns.parse_reply(reply(query, *circle), query, exact=True)
    itself = len(query)
    with pytest.raises(dns.MalformedDns, match="pointer"):
        dns.read_name(query + bytes((0xC0 | itself >> 8, itself)), itself)


@given(st.binary(max_size=600))
def test_bytes_of_any_kind_are_an_answer_or_malformed(data: bytes) -> None:
    query = asked("a.example")
    for message in (data, query[:2] + b"\x81\x80" + query[4:] + data, query[:12] + data):
        for parse in (
            dns.parse_query,
            lambda m: dns.parse_reply(m, query, exact=False),
        ):
            try:
                parse(message)
            except dns.MalformedDns:
                continue
