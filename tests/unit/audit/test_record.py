import json
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.audit.errors import AuditError
from agentd.audit.record import GENESIS, MAX_LINE, decode, entry, seal, unseal
from agentd.model.audit import Event, Kind
from agentd.model.redact import HIDDEN


def line_of(event: Event, *secrets: str) -> bytes:
    return seal(1, GENESIS, entry(event, 1.5, secrets).body)[0]


def test_a_line_is_json_and_its_hash_can_be_recomputed_by_hand() -> None:
    line = line_of(Event(kind=Kind.START, principal="uid:1", fields={"a": 1}))
    found = json.loads(line)
    body, _, _ = line.partition(b',"hash":')
    assert found["hash"] == sha256(body).hexdigest()
    assert found["prev"] == "0" * 64 and found["seq"] == 1 and found["kind"] == "start"
    assert found["time"] == "1970-01-01T00:00:01.500000Z"
    assert decode(line).fields == {"a": 1}


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_nothing_breaks_the_framing(name: str, value: str) -> None:
    line = line_of(
        Event(kind=Kind.END, principal=name, request=value, fields={name: value, "list": [value]})
    )
    assert line.count(b"\n") == 1 and line.endswith(b"\n") and b"\r" not in line
    assert unseal(line) is not None
    assert len(line) <= MAX_LINE


def test_a_forged_line_in_a_field_stays_a_field() -> None:
    forged = line_of(Event(kind=Kind.KEY_CREATED, principal="eve")).decode()
    line = line_of(Event(kind=Kind.START, fields={"words": f"x\n{forged}"}))
    assert line.count(b"\n") == 1 and decode(line).kind == "start"


def test_secrets_are_hidden_by_name_and_by_value() -> None:
    event = Event(kind=Kind.START, fields={"token": "a", "note": "with hunter2"})
    line = line_of(event, "hunter2")
    assert b"hunter2" not in line and decode(line).fields["token"] == HIDDEN


def test_nobody_hides_who_they_are_by_calling_their_name_a_secret() -> None:
    event = Event(kind=Kind.START, principal="mallory", request="req-1", sandbox="sbx-1")
    found = decode(line_of(event, "mallory", "req-1", "sbx-1"))
    assert (found.principal, found.request, found.sandbox) == ("mallory", "req-1", "sbx-1")


def test_too_many_fields_are_cut_and_their_digest_is_kept() -> None:
    made = entry(Event(kind=Kind.START, fields={f"f{i}": "\x00" * 4000 for i in range(60)}), 1.0)
    assert made.is_cut and len(made.body) < 1000
    assert set(decode(seal(1, GENESIS, made.body)[0]).fields) == {"cut", "sha256"}


@given(st.binary())
def test_any_bytes_can_be_unsealed_or_not(data: bytes) -> None:
    assert unseal(data) is None


def test_a_line_that_is_no_record() -> None:
    with pytest.raises(AuditError, match="no record"):
        decode(b"{}\n")
