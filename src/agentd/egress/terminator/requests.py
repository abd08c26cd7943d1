"""What a request is, before it is believed: a head that every server reads alike, of the host that
was dialled, judged by the sandbox's rules. Pure.
"""

import json
import re
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from agentd.egress import paths
from agentd.egress.table import EgressTable

MAX_HEAD = 64 << 10
MAX_FIELDS = 100
_MOST_MEANT = 16  # requests that one may be, by its line and by fields: each is judged
END = b"\r\n\r\n"
_METHOD = re.compile(rb"[A-Z][A-Z-]{0,31}")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_WORD = re.compile(r"[A-Z-]+")
_BARE = re.compile(rb"[\r\n\0]")
# By these some servers take a request for another one than its first line says.
_OTHER_METHOD = (b"x-http-method-override", b"x-http-method", b"x-method-override")
_OTHER_TARGET = (b"x-original-url", b"x-rewrite-url")
# Behind a body they are believed by servers that take what is there for fields.
_NO_TRAILERS = (*(b"host", b"content-length", b"transfer-encoding"), *_OTHER_METHOD, *_OTHER_TARGET)
# Java's client and curl's --http2 offer HTTP/2 in the clear with every request.
_OFFER = b"h2c"
_OFFERING = (b"upgrade", b"http2-settings")


class RefusedRequest(Exception):
    """``code`` and ``reason`` are told to the program, with ``status``."""

    def __init__(
        self, code: str, reason: str, *, status: int = 403, rule: str = "", fix: str = ""
    ) -> None:
        super().__init__(reason)
        self.code, self.reason, self.status = code, reason, status
        self.rule, self.fix = rule, fix


class RequestHead(NamedTuple):
    """``fields`` are names in lower case and values."""

    method: str
    target: str
    version: bytes
    fields: list[tuple[bytes, bytes]]

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]


def read_head(raw: bytes) -> RequestHead:
    """Return the head of a request, which ends with END. Raises RefusedRequest for one that two
    servers could read in two ways."""
    if len(raw) > MAX_HEAD:
        raise _bad(f"has a head of more than {MAX_HEAD} bytes")
    line, *fields = raw.removesuffix(END).split(b"\r\n")
    if len(fields) > MAX_FIELDS:
        raise _bad(f"has more than {MAX_FIELDS} fields")
    for each in (line, *fields):
        if _BARE.search(each):
            raise _bad("has a bare CR, LF or NUL in its head")
    if not raw.endswith(END):
        raise _bad("has no end of its head")
    words = line.split(b" ")
    if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise _bad("is no request of HTTP/1")
    method, target, version = words
    if not _METHOD.fullmatch(method):
        raise _bad("has a method that is none")
    if method == b"CONNECT":
        raise _bad("is a CONNECT: nobody is a proxy here")
    if not target.startswith(b"/") or not target.isascii():
        raise _bad("has a target that is no path")
    head = RequestHead(
        method.decode(), target.decode(), version, [_field(field) for field in fields]
    )
    _check_framing(head)
    return head


def check_trailers(fields: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises RefusedRequest for what would make another request of one that was judged."""
    for name, _ in fields:
        if name.lower().replace(b"_", b"-") in _NO_TRAILERS:
            raise _bad(f"has the field {name.decode()[:64]} behind its body")


def without_offer(fields: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the fields of a request without its offer to go on in HTTP/2, which nobody could read:
    who takes none answers as ever."""
    if (b"upgrade", _OFFER) not in [(name.lower(), value.lower()) for name, value in fields]:
        return list(fields)
    left = [(name, value) for name, value in fields if name.lower() not in _OFFERING]
    found = [(n, _connection(v) if n.lower() == b"connection" else v) for n, v in left]
    return [(name, value) for name, value in found if value]


def _connection(value: bytes) -> bytes:
    """Return what a Connection field says of others."""
    words = [word.strip() for word in value.split(b",")]
    return b", ".join(word for word in words if word.lower() not in _OFFERING)


def judge(head: RequestHead, name: str, port: int, table: EgressTable) -> tuple[str, str]:
    """Return the request's path and the rule that allows it. Raises RefusedRequest."""
    hosts = head.values(b"host")
    if len(hosts) != 1:
        raise _bad(f"has {len(hosts)} Host fields")
    if _host(hosts[0]) not in ((name, None), (name, port)):
        shown = hosts[0][:100].decode("latin-1")
        fix = "ask for the host that was dialled, or dial the one that is meant"
        raise RefusedRequest("wrong_host", f"it dialled {name} and asks for {shown}", fix=fix)
    methods = dict.fromkeys((head.method, *_methods(head)))
    targets = dict.fromkeys((head.target, *_overriding(head, _OTHER_TARGET)))
    if len(methods) * len(targets) > _MOST_MEANT:
        raise _bad("has too many fields that say what it is")
    rules = [_judged(*meant, name, port, table) for meant in product(methods, targets)]
    return head.target.partition("?")[0], rules[0]


def _judged(method: str, target: str, name: str, port: int, table: EgressTable) -> str:
    """Return the rule that allows it. Raises RefusedRequest."""
    try:
        path = paths.read(target)
    except ValueError as error:
        raise _bad(str(error)) from None
    verdict = table.of_request(name, port, method, path)
    if not verdict.allowed:
        raise RefusedRequest("denied", verdict.reason, rule=verdict.rule)
    return verdict.rule


def _methods(head: RequestHead) -> list[str]:
    """What such fields name: of a list some servers take the first, some the last."""
    said = " ".join(_overriding(head, _OTHER_METHOD)).upper()
    return [str(word) for word in _WORD.findall(said)]


def _overriding(head: RequestHead, names: tuple[bytes, ...]) -> list[str]:
    """What such fields say, however servers read their names."""
    found = [value for name, value in head.fields if name.replace(b"_", b"-") in names]
    return [value.decode("latin-1") for value in found if value]


def answer(
    refused: RefusedRequest, host: str, port: int, method: str, target: str
) -> tuple[list[tuple[str, str]], bytes]:
    """Return fields and body of what a program is told."""
    path = target.partition("?")[0]
    body = {
        "code": refused.code,
        "message": f"agentd: the network refused {method} {host}{path}: {refused.reason}"[:2000],
        "host": host,
        "method": method,
        "path": path[:1000],
        "rule": refused.rule,
        "remediation": _remediation(refused, host, port, method, path),
    }
    data = json.dumps({"error": body}).encode() + b"\n"
    fields = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(data))),
        ("Cache-Control", "no-store"),
        ("Agentd-Refused", refused.code),
        ("Connection", "close"),
    ]
    return fields, data


def _remediation(refused: RefusedRequest, host: str, port: int, method: str, path: str) -> str:
    if refused.code == "denied" and not refused.rule:
        return f"allow it with --net '{paths.rule_of_request(method, host, port, path)}'"[:1200]
    if refused.code == "denied":
        return "leave that rule out, if it is to be allowed"
    if refused.code == "bad_request":
        return "send a request that is plain HTTP/1.1"
    return refused.fix


def _bad(reason: str) -> RefusedRequest:
    return RefusedRequest("bad_request", f"the request {reason}", status=400)


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    if line[:1] in b" \t":
        raise _bad("has a field over several lines")
    if not colon or not _NAME.fullmatch(name):
        raise _bad("has a malformed field")
    return name.lower(), value.strip(b" \t")


def _check_framing(head: RequestHead) -> None:
    lengths, codings = head.values(b"content-length"), head.values(b"transfer-encoding")
    if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise _bad("has a length that is not one number")
    if codings and lengths:
        raise _bad("has both a length and a transfer coding")
    if codings and (
        [each.lower() for each in codings] != [b"chunked"] or head.version[-1:] == b"0"
    ):
        raise _bad("has a transfer coding other than chunked")
    upgrades = [each.lower() for each in head.values(b"upgrade")]
    if upgrades not in ([], [b"websocket"], [_OFFER]):
        raise _bad("asks for another protocol than websocket")
    if any(each.lower() != b"100-continue" for each in head.values(b"expect")):
        raise _bad("expects what is not known")


def _host(value: bytes) -> tuple[str, int | None]:
    text = value.decode("latin-1").lower()
    name, colon, port = text.partition(":")
    if colon and not (port.isascii() and port.isdigit() and len(port) < 6):
        return text, None
    return name.removesuffix("."), int(port) if colon else None
