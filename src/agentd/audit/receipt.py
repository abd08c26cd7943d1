"""Receipts: a signed statement (in-toto v1) of one execution, chained to the audit log.

    issue(facts, key) -> envelope        verify(envelope, public key) -> Statement

Everything in a receipt but the record's place stands in the audit record of the execution's end,
too: a receipt that was lost can be issued again from there. What is told of an execution, in both,
is bounded, and nothing in it is secret.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NoReturn, Protocol

import msgspec

from agentd.audit import dsse
from agentd.audit.errors import AuditError, ReceiptInvalid
from agentd.audit.keypair import KeyPair, PublicKey
from agentd.audit.record import LogEntry, plain
from agentd.model import typed
from agentd.model.audit import Event, Kind, Position, Record
from agentd.model.enforcement import Control
from agentd.model.errors import InvalidInput
from agentd.model.redact import Redactor
from agentd.model.result import Cause, NetworkUsage, Usage

MAX_CONTROLS = 64
MAX_OUTPUTS = 32
MAX_REASONS = 8
MAX_HOSTS = 32
_NAME = 96  # characters; with the bounds above it all fits into a record
_TEXT = 192
_MESSAGE = 512
_DIGEST = re.compile(r"(sha256:[0-9a-f]{64})?")


class Decided(msgspec.Struct, frozen=True):
    """A policy's answer; ``bundle`` is "sha256:..." of what decided, "" for no policy."""

    allow: bool
    bundle: str = ""
    reasons: tuple[str, ...] = ()


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """``request`` is the request's id, and the receipt's. Digests are "sha256:..." or "" where
    there is none; times are seconds since the epoch."""

    principal: str
    request: str
    request_digest: str
    sandbox: str = ""
    capability: str = ""
    decision: Decided
    backend: str
    level: str
    image_digest: str = ""
    code_digest: str = ""  # of the argv, or of the code
    input_digest: str = ""
    outputs: Mapping[str, str]  # name, as "stdout" -> digest
    enforcement: Mapping[str, Control] = {}
    usage: Usage = Usage()
    cause: Cause
    exit_code: int | None = None
    signal: int | None = None
    started: float
    ended: float


def clean(execution: Execution, secrets: Iterable[str] = ()) -> Execution:
    """Return a copy that can be recorded. Raises InvalidInput for what is no digest.

    ``secrets`` are hidden in what others wrote: reasons, messages, names of controls and outputs.
    Names, digests and numbers are ours, and stay: nobody hides them by calling them secrets.
    """
    known = frozenset(secrets)
    hide = Redactor(known).text
    decision, cause = execution.decision, execution.cause
    controls = tuple(execution.enforcement.items())[:MAX_CONTROLS]
    for digest in (
        execution.request_digest,
        execution.image_digest,
        execution.code_digest,
        execution.input_digest,
        decision.bundle,
        *execution.outputs.values(),
    ):
        if not _DIGEST.fullmatch(digest):
            _refuse(digest)
    return msgspec.structs.replace(
        execution,
        decision=Decided(
            decision.allow,
            decision.bundle,
            tuple([_bounded(hide(reason), _MESSAGE) for reason in decision.reasons[:MAX_REASONS]]),
        ),
        outputs={
            _bounded(hide(name), _NAME): digest
            for name, digest in list(execution.outputs.items())[:MAX_OUTPUTS]
        },
        usage=_usage(execution.usage, hide),
        enforcement=_controls(controls, hide) if known else _plain_controls(controls),
        cause=Cause(
            cause.code,
            _bounded(hide(cause.message), _MESSAGE),
            _bounded(hide(cause.remediation), _MESSAGE),
            cause.infrastructure,
        ),
    )


def _usage(usage: Usage, hide: Callable[[str], str]) -> Usage:
    """Bound the hosts of a network, the most used first: names may be of whoever ran."""
    if not isinstance(usage.network, NetworkUsage):
        return usage
    most = sorted(usage.network.hosts.items(), key=lambda item: -item[1])[:MAX_HOSTS]
    hosts = {_bounded(hide(name), _NAME): count for name, count in most}
    network = msgspec.structs.replace(usage.network, hosts=hosts)
    return msgspec.structs.replace(usage, network=network)


def _controls(
    controls: tuple[tuple[str, Control], ...], hide: Callable[[str], str]
) -> Mapping[str, Control]:
    return {
        _bounded(hide(name), _NAME): Control(
            _bounded(hide(control.asked), _NAME),
            control.enforced,
            _bounded(hide(control.detail), _TEXT),
        )
        for name, control in controls
    }


@lru_cache(256)
def _plain_controls(controls: tuple[tuple[str, Control], ...]) -> Mapping[str, Control]:
    """Write them without secrets of the caller's: the same for every command of a sandbox."""
    return _controls(controls, Redactor().text)


def slim(known: Execution) -> Execution:
    """Leave out what says how and why, of one whose text is too long even so."""
    controls = list(known.enforcement.items())[: MAX_CONTROLS // 2]
    return msgspec.structs.replace(
        known,
        decision=Decided(known.decision.allow, known.decision.bundle),
        enforcement={name: Control("", control.enforced) for name, control in controls},
        cause=Cause(known.cause.code, "", "", known.cause.infrastructure),
        usage=msgspec.structs.replace(known.usage, network=msgspec.UNSET),
    )


def _bounded(text: str, size: int) -> str:
    """Cut a longer one behind a word, if there is one near, and show that it was."""
    if len(text) <= size:
        return text
    kept = text[: size - 3]
    words = kept.rpartition(" ")[0]
    return f"{words if len(words) > size // 2 else kept}..."


def _refuse(digest: str) -> NoReturn:
    raise InvalidInput(
        f"{digest[:100]!r} is no digest", remediation="write it as sha256: and 64 hex digits"
    )


STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:agentd:receipt:v1"


class ReceiptFacts(msgspec.Struct, frozen=True):
    """``record`` is the place of the execution's end in the audit log."""

    execution: Execution
    record: Position


class Subject(msgspec.Struct, frozen=True):
    name: str
    digest: dict[str, str]


class Statement(msgspec.Struct, frozen=True):
    subject: tuple[Subject, ...]
    predicate: ReceiptFacts
    type: str = msgspec.field(default=STATEMENT_TYPE, name="_type")
    predicate_type: str = msgspec.field(default=PREDICATE_TYPE, name="predicateType")


class ReceiptLog(Protocol):
    """AuditLog or SharedLog."""

    def append(self, event: LogEntry, /) -> Position: ...


_encode = msgspec.json.Encoder().encode
_decode = typed.decoder(Statement).decode
# They have a place of their own in a record.
_OF_EVENT = ("principal", "request", "sandbox", "capability")


def chain(log: ReceiptLog, execution: Execution, secrets: Iterable[str] = ()) -> ReceiptFacts:
    """Record the end of an execution; it is on disk when this returns.

    What is returned says nothing that the record does not, secrets included. Raises AuditError.
    """
    known = clean(execution, secrets)
    made = plain(_event(known), time.time())
    if made.is_cut:
        known = slim(known)
        made = plain(_event(known), time.time())
    position = log.append(made)
    return ReceiptFacts(known, position)


def facts_of(record: Record) -> ReceiptFacts:
    """Return the facts in the record of an execution's end. Raises AuditError for another."""
    if record.kind != Kind.END:
        raise AuditError(
            f"record {record.seq} is no execution's end", cause=f"its kind is {record.kind}"
        )
    own = {name: getattr(record, name) for name in _OF_EVENT}
    try:
        execution = typed.convert({**record.fields, **own}, Execution)
    except msgspec.ValidationError as error:
        raise AuditError(
            f"record {record.seq} is not enough for a receipt", cause=str(error)
        ) from error
    return ReceiptFacts(execution, record.position)


def issue(facts: ReceiptFacts, key: KeyPair) -> bytes:
    """Return the signed envelope, JSON on one line."""
    outputs = facts.execution.outputs
    subjects = tuple(
        Subject(name, {"sha256": digest.removeprefix("sha256:")})
        for name, digest in sorted(outputs.items())
    )
    return dsse.sign(_encode(Statement(subjects, facts)), key)


def verify(envelope: bytes, public_key: PublicKey) -> Statement:
    """Return what ``public_key`` (PEM) has signed. Raises ReceiptInvalid."""
    return _statement(dsse.open_envelope(envelope, public_key))


def peek(envelope: bytes) -> Statement:
    """Return what it says, unverified: for display alone. Raises ReceiptInvalid."""
    return _statement(dsse.payload_of(envelope))


def _statement(payload: bytes) -> Statement:
    try:
        found = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReceiptInvalid("the receipt's statement cannot be read", cause=str(error)) from error
    if found.type != STATEMENT_TYPE or found.predicate_type != PREDICATE_TYPE:
        raise ReceiptInvalid(
            f"the statement is of another type, {found.predicate_type[:100]!r}",
            remediation="use an agentd that knows it",
        )
    return found


def _event(execution: Execution) -> Event:
    fields: dict[str, Any] = msgspec.to_builtins(execution)
    own = {name: fields.pop(name) for name in _OF_EVENT}
    return Event(kind=Kind.END, fields=fields, **own)
