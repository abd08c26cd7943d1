"""Messages of DNS (RFC 1035), as little of them as a name server of synthetic answers needs.

Pure: bytes in, values out. What is malformed raises ``MalformedDns``; nothing here recurses, and no
loop is longer than its message.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

A, CNAME, AAAA = 1, 5, 28
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
MAX_NAME, MAX_LABEL = 253, 63
#: Without EDNS a datagram has no more (RFC 1035, 4.2.1); ours are shorter.
MAX_UDP = 4096

_HEADER = struct.Struct(">HHHHHH")
_QR, _TC, _RD, _RA = 0x8000, 0x0200, 0x0100, 0x0080
_OPCODE, _RCODE = 0x7800, 0x000F
_MAX_RECORDS = 256
_MAX_POINTERS = 64  # a name has at most 127 labels


class MalformedDns(ValueError):
    """The message is none, or not of a kind that is answered. ``code`` is what it is told."""

    def __init__(self, what: str, code: int = FORMERR) -> None:
        super().__init__(what)
        self.code = code


class DnsQuestion(NamedTuple):
    """The one question of a query. ``name`` is lower case, without the dot at its end; ``question``
    is it as it was sent, which an answer repeats. ``recursion``: the flag, repeated too."""

    number: int
    name: str
    kind: int
    question: bytes
    recursion: int


class DnsReply(NamedTuple):
    """What an upstream server said. ``addresses`` are those at the end of the chain of aliases that
    begins with the name; ``alias`` is where that chain ends where it has none. ``ttl``: seconds."""

    code: int
    truncated: bool
    addresses: tuple[str, ...]
    alias: str
    ttl: int


def parse_query(message: bytes) -> DnsQuestion:
    """Parse a query. Raises MalformedDns."""
    if len(message) < _HEADER.size:
        raise MalformedDns("shorter than its header")
    number, flags, questions, answers, authorities, _more = _HEADER.unpack_from(message)
    if flags & _QR:
        raise MalformedDns("an answer where a query is awaited")
    if flags & _OPCODE:
        raise MalformedDns("no ordinary query", NOTIMP)
    if questions != 1 or answers or authorities:
        raise MalformedDns(f"{questions} questions, {answers} answers")
    name, at = _plain_name(message, _HEADER.size)
    if at + 4 > len(message):
        raise MalformedDns("the question ends early")
    kind, klass = struct.unpack_from(">HH", message, at)
    if klass != IN:
        raise MalformedDns(f"class {klass}", NOTIMP)
    return DnsQuestion(number, name, kind, message[_HEADER.size : at + 4], flags & _RD)


def number_of(message: bytes) -> int | None:
    """Return the number that an answer to it must have, however malformed it is; None where it has
    none, or is an answer itself: answering those would go on for ever."""
    if len(message) < _HEADER.size or message[2] & 0x80:
        return None
    return message[0] << 8 | message[1]


def refusal(number: int, code: int) -> bytes:
    """Make an answer to what has no question that could be repeated."""
    return _HEADER.pack(number, _QR | _RA | code, 0, 0, 0, 0)


def answer(asked: DnsQuestion, code: int, address: bytes = b"", ttl: int = 0) -> bytes:
    """Make one; ``address`` has 4 or 16 bytes, or none for no such record, or no such name."""
    flags = _QR | _RA | asked.recursion | code
    head = _HEADER.pack(asked.number, flags, 1, 1 if address else 0, 0, 0) + asked.question
    if not address:
        return head
    kind = A if len(address) == 4 else AAAA
    # Its name is a pointer to the question's.
    return head + struct.pack(">HHHIH", 0xC00C, kind, IN, ttl, len(address)) + address


def query(number: int, labels: Iterable[bytes], kind: int) -> bytes:
    name = b"".join(bytes((len(label),)) + label for label in labels)
    head = _HEADER.pack(number, _RD, 1, 0, 0, 0)
    return head + name + struct.pack(">BHH", 0, kind, IN)


def parse_reply(message: bytes, sent: bytes, *, exact: bool) -> DnsReply:
    """Parse a reply; ``sent`` is the query: its question must be repeated, with ``exact`` to the
    letter's case.

    Raises MalformedDns, for what is no answer to it as well.
    """
    if len(message) < _HEADER.size:
        raise MalformedDns("shorter than its header")
    number, flags, questions, answers, _authorities, _more = _HEADER.unpack_from(message)
    question = sent[_HEADER.size :]
    echoed = message[_HEADER.size : len(sent)]
    same = echoed == question if exact else echoed.lower() == question.lower()
    if number != sent[0] << 8 | sent[1] or not flags & _QR or questions != 1 or not same:
        raise MalformedDns("no answer to what was asked")
    code, kind = flags & _RCODE, question[-3]
    if flags & _TC or code not in (NOERROR, NXDOMAIN):
        return DnsReply(code, bool(flags & _TC), (), "", 0)
    name, at = _plain_name(message, _HEADER.size)
    return _follow(message, at + 4, min(answers, _MAX_RECORDS), name, kind)


def _follow(message: bytes, at: int, count: int, name: str, kind: int) -> DnsReply:
    """Read the records of an answer, which has an alias before what it stands for."""
    aliases: dict[str, tuple[str, int]] = {}
    found: dict[str, list[tuple[str, int]]] = {}
    code = message[3] & _RCODE
    for _ in range(count):
        owner, at = read_name(message, at)
        if at + 10 > len(message):
            raise MalformedDns("a record ends early")
        type_, klass, ttl, length = struct.unpack_from(">HHIH", message, at)
        at += 10
        data = message[at : at + length]
        if len(data) != length:
            raise MalformedDns("a record ends early")
        if klass == IN and type_ == CNAME:
            aliases[owner] = (read_name(message, at)[0], ttl)
        elif klass == IN and type_ == kind:
            found.setdefault(owner, []).append((_spelled(data, kind), ttl))
        at += length
    ttls = []
    seen = {name}
    while name not in found and name in aliases:
        name, ttl = aliases[name]
        ttls.append(ttl)
        if name in seen:
            raise MalformedDns("aliases in a circle")
        seen.add(name)
    records = found.get(name, [])
    ttls += [ttl for _, ttl in records]
    alias = name if len(seen) > 1 and not records and code == NOERROR else ""
    addresses = tuple(dict.fromkeys(address for address, _ in records))
    return DnsReply(code, False, addresses, alias, min(ttls, default=0))


def read_name(message: bytes, at: int) -> tuple[str, int]:
    """Return a name and where what follows it begins; pointers (4.1.4) only lead back. Raises
    MalformedDns."""
    labels: list[str] = []
    end, left, limit = -1, MAX_NAME + 1, at
    for _ in range(2 * _MAX_POINTERS + 128):
        if at >= len(message):
            raise MalformedDns("a name ends early")
        length = message[at]
        if length >= 0xC0:
            if at + 1 >= len(message):
                raise MalformedDns("a name ends early")
            target = (length & 0x3F) << 8 | message[at + 1]
            end = at + 2 if end < 0 else end
            if target >= limit:
                raise MalformedDns("a pointer that does not lead back")
            at = limit = target
            continue
        if length == 0:
            return ".".join(labels), at + 1 if end < 0 else end
        if length > MAX_LABEL:
            raise MalformedDns("a label of an unknown kind")
        label = message[at + 1 : at + 1 + length]
        left -= length + 1
        if len(label) != length or left < 0:
            raise MalformedDns("a name that is too long")
        labels.append(label.lower().decode("latin-1"))
        at += 1 + length
    raise MalformedDns("a name without end")


def _plain_name(message: bytes, at: int) -> tuple[str, int]:
    """A question's name: without pointers, of characters that names of hosts have."""
    name, end = read_name(message, at)
    if end - at != len(name) + (2 if name else 1):
        raise MalformedDns("a question with a pointer")
    if not name.isascii() or not name.replace(".", "").replace("-", "").replace("_", "").isalnum():
        raise MalformedDns("no name of a host", NXDOMAIN)
    return name, end


def _spelled(data: bytes, kind: int) -> str:
    if len(data) != (4 if kind == A else 16):
        raise MalformedDns("an address of a wrong length")
    if kind == A:
        return ".".join(map(str, data))
    return ":".join(f"{high << 8 | low:x}" for high, low in zip(data[::2], data[1::2], strict=True))
