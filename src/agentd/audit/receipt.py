"""Receipts: a signed statement (in-toto v1) of one execution, chained to the audit log.

    issue(facts, key) -> envelope        verify(envelope, public key) -> Statement

Everything in a receipt but the record's place stands in the audit record of the execution's end,
too: a receipt that was lost can be issued again from there.
"""

import time
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from agentd.audit import dsse
from agentd.audit.errors import AuditError, ReceiptInvalid
from agentd.audit.execution import Execution, clean, slim
from agentd.audit.keypair import KeyPair, PublicKey
from agentd.audit.record import LogEntry, plain
from agentd.model import typed
from agentd.model.audit import Event, Kind, Position, Record

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
    """The signed envelope, JSON on one line."""
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
