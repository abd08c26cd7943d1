"""What a program says first, as far as it names whom it talks to: TLS's ClientHello, HTTP's head.

Pure, over the bytes that came so far: ``MORE`` where the name may still come. TLS is read as far as
its server name (RFC 8446, 4.1.2; RFC 6066, 3), over as many records as it takes. Encrypted
ClientHellos (ECH) have an outer name, which is the one that counts: where it is not the name that
was dialled the connection is refused, and addresses are never answered with keys for one.
"""

from typing import NamedTuple

MAX_HELLO = 16 << 10
MAX_HEAD = 8 << 10
_MAX_RECORDS = 64  # it is read anew with every piece that comes: many small ones take long
_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME = 22, 1, 0
_RECORD = 5


class First(NamedTuple):
    """``name`` is lower case; None where none is given. ``wrong`` says what is wrong with it."""

    name: str | None
    wrong: str = ""


MORE = None


def objection(said: First | None, dialled: str | None, *, strict: bool, over: bool) -> str | None:
    """Return why what was ``said`` is refused of a connection to the name ``dialled``, "" where it
    is not, and None while more has to come; with ``strict`` it has to name a host, and where it is
    ``over`` no more comes."""
    if said is MORE:
        return "it ended before it said whom it talks to" if over else None
    if said.wrong:
        return f"what it says {said.wrong}"
    if said.name is None and strict:
        return "its ClientHello names no server"
    if said.name not in (None, dialled):
        return f"it dialled {dialled} and asks for {said.name}"[:300]
    return ""


def is_tls(data: bytes) -> bool:
    return data[:1] == b"\x16"


def server_name(data: bytes) -> First | None:
    """Return the name of a ClientHello; ``MORE`` while it is not whole."""
    hello = bytearray()
    at = 0
    for _ in range(_MAX_RECORDS):
        if len(hello) >= 4:
            if hello[0] != _CLIENT_HELLO:
                return First(None, "begins TLS with no ClientHello")
            length = int.from_bytes(hello[1:4], "big")
            if length > MAX_HELLO:
                return First(None, f"its ClientHello is over {MAX_HELLO} bytes")
            if len(hello) >= 4 + length:
                return _of_hello(bytes(hello[4 : 4 + length]))
        record = data[at : at + _RECORD]
        if record and record[0] != _HANDSHAKE:
            return First(None, "is no TLS")
        if len(record) < _RECORD:
            return _more(data)
        if record[1] != 3:
            return First(None, "is of no known version of TLS")
        size = int.from_bytes(record[3:5], "big")
        if not 0 < size <= 1 << 14:
            return First(None, "has a record of a wrong length")
        part = data[at + _RECORD : at + _RECORD + size]
        hello += part
        if len(part) < size and not _is_whole(hello):
            return _more(data)
        at += _RECORD + size
    return First(None, f"its ClientHello is in {_MAX_RECORDS} records or more")


def _is_whole(hello: bytearray) -> bool:
    return len(hello) >= 4 and len(hello) >= 4 + int.from_bytes(hello[1:4], "big")


def _more(data: bytes) -> First | None:
    if len(data) >= MAX_HELLO:
        return First(None, f"its ClientHello is over {MAX_HELLO} bytes")
    return MORE


def _of_hello(body: bytes) -> First:
    try:
        return _of_extensions(_Reader(body))
    except IndexError:
        return First(None, "its ClientHello ends early")


def _of_extensions(hello: "_Reader") -> First:
    hello.take(2 + 32)  # version and random
    hello.vector(1)  # session id
    hello.vector(2)  # ciphers
    hello.vector(1)  # compression
    if not hello.left:
        return First(None)
    extensions = _Reader(hello.vector(2))
    found: First | None = None
    while extensions.left:
        kind = extensions.number(2)
        data = extensions.vector(2)
        if kind != _SERVER_NAME:
            continue
        if found is not None:
            return First(None, "has two server names")
        names = _Reader(_Reader(data).vector(2))
        type_, name = names.number(1), names.vector(2)
        if names.left or type_ != 0 or not name or not name.isascii() or b"\0" in name:
            return First(None, "has no plain server name")
        found = First(name.decode().lower())
    return found or First(None)


class _Reader:
    """Raises IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise IndexError
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))


_CR = b"\r"  # within a line: some servers take it for the end of one
_METHOD = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ-")


def host(data: bytes) -> First | None:
    """Return the host of an HTTP/1 request; ``MORE`` while its head is not whole. That of the
    connection's first request: later ones are not read."""
    line, newline, rest = data.partition(b"\n")
    method = line.split(b" ", 1)[0]
    if len(method) > 32 or not _METHOD.issuperset(method.strip(b"\r")) or line[:1] in b" \r":
        return First(None, "is no HTTP") if data else MORE
    if not newline:
        return _more_head(data)
    line = line.rstrip(b"\r")
    words = line.split(b" ")
    if len(words) != 3 or _CR in line or not words[2].startswith(b"HTTP/1."):
        return First(None, "is no request of HTTP/1")
    head, end = _head(rest)
    if not end:
        return _more_head(data)
    hosts = []
    for field in head.split(b"\n")[:-1]:
        name, colon, value = field.partition(b":")
        if field[:1] in b" \t" or not colon or name != name.strip() or _CR in field[:-1]:
            return First(None, "has a malformed field")
        if name.lower() == b"host":
            hosts.append(_bare(value.strip()))
    if len(hosts) != 1:
        return First(None, f"has {len(hosts)} Host fields")
    target = words[1]
    if not target.startswith(b"/") and target != b"*":
        scheme, slashes, where = target.partition(b"://")
        authority = where if slashes else scheme
        if _bare(authority.split(b"/", 1)[0].split(b"?", 1)[0]) != hosts[0]:
            return First(None, "has a target of another host")
    return First(hosts[0].decode("latin-1"))


def _head(rest: bytes) -> tuple[bytes, bool]:
    """The fields, each with its newline, and whether the empty line after them is there."""
    if rest.startswith((b"\r\n", b"\n")):
        return b"", True
    ends = [at for at in (rest.find(b"\n\r\n"), rest.find(b"\n\n")) if at >= 0]
    return (rest[: min(ends) + 1], True) if ends else (b"", False)


def _more_head(data: bytes) -> First | None:
    return First(None, f"its head is over {MAX_HEAD} bytes") if len(data) >= MAX_HEAD else MORE


def _bare(authority: bytes) -> bytes:
    """Without its port, and without the dot that may stand at a name's end."""
    name, colon, port = authority.rpartition(b":")
    return (name if colon and port.isdigit() else authority).lower().removesuffix(b".")
