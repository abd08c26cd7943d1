"""A record's line.

    {"seq":2,"prev":"HASH","kind":"start","time":"...",...,"hash":"HASH"}

``hash`` is the SHA-256 of the line up to and without ``,"hash":``, so it covers ``prev``, the hash
of the record before. The first record's ``prev`` is 64 zeros.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec

from agentd.audit.errors import AuditError
from agentd.model import typed
from agentd.model.audit import Event, Record
from agentd.model.redact import Redactor, text

GENESIS = b"0" * 64
MAX_LINE = 64 << 10  # bytes
_MAX_BODY = 56 << 10
_MAX_NAME = 512  # characters
_OURS = re.compile(r"(req-[0-9a-f]{16})?")  # a request's id: another each time, nobody's words
_HASH = b',"hash":"'
TAIL = len(_HASH) + 64 + len(b'"}')  # what follows that which is hashed
BEGIN = re.compile(rb'\{"seq":([1-9][0-9]{0,18}),"prev":"([0-9a-f]{64})","kind":"[a-z_]+",')


class LogEntry(NamedTuple):
    """An event as it will stand in the log: nothing secret in it, bounded."""

    body: bytes  # the line without ``{"seq":N,"prev":"HASH",`` and what follows the fields
    is_cut: bool = False  # whether its fields were too many


class RecordSeal(NamedTuple):
    seq: int
    prev: bytes
    hash: bytes


class _Body(msgspec.Struct, omit_defaults=True):
    kind: str
    time: datetime
    principal: str = ""
    request: str = ""
    sandbox: str = ""
    capability: str = ""
    fields: Mapping[str, Any] = {}


_encode = msgspec.json.Encoder().encode
_decode = typed.decoder(Record).decode


def entry(event: Event, now: float, secrets: Iterable[str] = ()) -> LogEntry:
    """``now`` in seconds since the epoch. Never raises for what the fields hold.

    ``secrets`` are looked for in the fields alone: nobody may hide who they are by calling their
    own name a secret.
    """
    return known(event, Redactor(secrets).fields(event.fields) if event.fields else {}, now)


def known(event: Event, fields: Mapping[str, Any], now: float) -> LogEntry:
    """``entry`` with the place of its fields taken by ``fields``, which hold nothing secret."""
    clean = Event(
        kind=event.kind,
        principal=_name(event.principal),
        request=event.request if _OURS.fullmatch(event.request) else _name(event.request),
        sandbox=_name(event.sandbox),
        capability=_name(event.capability),
        fields=fields,
    )
    return plain(clean, now)


def plain(clean: Event, now: float) -> LogEntry:
    """Make the entry of an event that is known to hold nothing secret; cut too many fields."""
    made = _Body(
        clean.kind,
        datetime.fromtimestamp(now, UTC),
        clean.principal,
        clean.request,
        clean.sandbox,
        clean.capability,
        clean.fields,
    )
    body = _encode(made)[1:-1]
    if len(body) <= _MAX_BODY:
        return LogEntry(body)
    digest = sha256(_encode(clean.fields)).hexdigest()
    made.fields = {"cut": f"{len(body)} bytes were too many", "sha256": digest}
    return LogEntry(_encode(made)[1:-1], is_cut=True)


def seal(seq: int, prev: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Return the line, and its hash."""
    begun = b'{"seq":%d,"prev":"%b",%b' % (seq, prev, body)
    digest = sha256(begun).hexdigest().encode()
    return b'%b,"hash":"%b"}\n' % (begun, digest), digest


def unseal(line: bytes) -> RecordSeal | None:
    """Return the seal of a whole line, with its newline, whose own hash is right; else None."""
    head = BEGIN.match(line)
    if head is None or not line.endswith(b'"}\n') or len(line) > MAX_LINE:
        return None
    begun, rest = line[: -TAIL - 1], line[-TAIL - 1 : -3]
    digest = sha256(begun).hexdigest().encode()
    return RecordSeal(int(head[1]), head[2], digest) if rest == _HASH + digest else None


def decode(line: bytes) -> Record:
    """Raises AuditError."""
    try:
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AuditError(
            "a line of the audit log is no record",
            cause=str(error),
            remediation="agentd audit verify says where",
        ) from error


@lru_cache(1024)
def _name(words: str) -> str:
    """Return a name as it may stand in a record; the same few come in one after another."""
    return text(words)[:_MAX_NAME]
