import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.audit import dsse
from agentd.audit.errors import ReceiptInvalid
from agentd.audit.keypair import KeyPair


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return KeyPair.load_or_create(str(tmp_path_factory.mktemp("key") / "key"))


def test_the_encoding_is_that_of_the_specification() -> None:
    # Its own example: protocol.md, "Test vectors".
    assert (
        dsse.pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_an_envelope_opens_with_its_key_alone(key: KeyPair, tmp_path: Path) -> None:
    envelope = dsse.sign(b"{}", key)
    assert dsse.open_envelope(envelope, key.public_pem()) == b"{}" == dsse.payload_of(envelope)
    found = json.loads(envelope)
    assert found["signatures"][0]["keyid"] == key.id
    other = KeyPair.load_or_create(str(tmp_path / "other"))
    with pytest.raises(ReceiptInvalid, match="does not hold"):
        dsse.open_envelope(envelope, other.public)


def test_the_type_is_signed_too_and_the_key_id_is_no_proof(key: KeyPair) -> None:
    found = json.loads(dsse.sign(b"{}", key))
    found["payloadType"] = "text/plain"
    with pytest.raises(ReceiptInvalid, match="of type 'text/plain'"):
        dsse.open_envelope(json.dumps(found).encode(), key.public)
    found["payloadType"] = dsse.PAYLOAD_TYPE
    found["signatures"][0]["keyid"] = "another"
    assert dsse.open_envelope(json.dumps(found).encode(), key.public) == b"{}"
    found["signatures"] = []
    with pytest.raises(ReceiptInvalid, match="does not hold"):
        dsse.open_envelope(json.dumps(found).encode(), key.public)


def test_both_alphabets_of_base64_are_read(key: KeyPair) -> None:
    payload = bytes(range(256))
    found = json.loads(dsse.sign(payload, key))
    found["payload"] = base64.urlsafe_b64encode(payload).decode()
    assert dsse.open_envelope(json.dumps(found).encode(), key.public) == payload


def test_what_is_too_large_is_not_read(key: KeyPair) -> None:
    with pytest.raises(ReceiptInvalid, match="bytes"):
        dsse.open_envelope(b" " * (dsse.MAX_ENVELOPE + 1), key.public)
    found = json.loads(dsse.sign(b"{}", key))
    found["signatures"] *= 9
    with pytest.raises(ReceiptInvalid, match="more than 8"):
        dsse.open_envelope(json.dumps(found).encode(), key.public)


@given(st.data())
def test_no_changed_byte_of_payload_or_signature_passes(key: KeyPair, data: st.DataObject) -> None:
    found = json.loads(dsse.sign(b'{"a":"some payload"}', key))
    part = data.draw(st.sampled_from(["payload", "sig"]))
    holder = found if part == "payload" else found["signatures"][0]
    raw = bytearray(base64.b64decode(holder[part]))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    holder[part] = base64.b64encode(raw).decode()
    with pytest.raises(ReceiptInvalid):
        dsse.open_envelope(json.dumps(found).encode(), key.public)


@given(st.binary() | st.text().map(str.encode))
def test_nonsense_is_refused_with_a_typed_error(key: KeyPair, data: bytes) -> None:
    with pytest.raises(ReceiptInvalid):
        dsse.open_envelope(data, key.public)
