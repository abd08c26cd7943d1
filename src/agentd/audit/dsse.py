"""DSSE envelopes (https://github.com/secure-systems-lab/dsse, protocol and envelope of v1)."""

import base64
import binascii

import msgspec

from agentd.audit.errors import ReceiptInvalid
from agentd.audit.keypair import KeyPair, PublicKey, as_public_key, key_id
from agentd.model import typed

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_ENVELOPE = 1 << 20  # bytes
MAX_SIGNATURES = 8


class _Signature(msgspec.Struct):
    sig: str
    keyid: str = ""


class _Envelope(msgspec.Struct):
    payload: str
    payloadType: str
    signatures: list[_Signature]


_encode = msgspec.json.Encoder().encode
_decode = typed.decoder(_Envelope).decode


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, key: KeyPair) -> bytes:
    """Return the envelope, as JSON on one line."""
    signature = key.sign(pae(PAYLOAD_TYPE, payload))
    signatures = [_Signature(base64.b64encode(signature).decode(), key.id)]
    return _encode(_Envelope(base64.b64encode(payload).decode(), PAYLOAD_TYPE, signatures))


def open_envelope(envelope: bytes, public_key: PublicKey) -> bytes:
    """Return the payload, where ``public_key`` has signed it. Raises ReceiptInvalid."""
    found = _parsed(envelope)
    payload = _base64(found.payload)
    key = as_public_key(public_key)
    signed = pae(found.payloadType, payload)
    # The key id is a hint that nobody has signed: every signature is tried.
    if not any(_holds(key, _base64(each.sig), signed) for each in found.signatures):
        raise ReceiptInvalid(
            "the receipt's signature does not hold",
            cause=f"it was changed, or it is not of key {key_id(key)}",
            remediation="verify it with the public key of the daemon that issued it",
        )
    return payload


def payload_of(envelope: bytes) -> bytes:
    """Return the payload, which anybody may have written: for display alone. Raises
    ReceiptInvalid."""
    return _base64(_parsed(envelope).payload)


def _parsed(envelope: bytes) -> _Envelope:
    if len(envelope) > MAX_ENVELOPE:
        raise _malformed(f"it has {len(envelope)} bytes; {MAX_ENVELOPE} are allowed")
    try:
        found = _decode(envelope)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _malformed(str(error)) from error
    if found.payloadType != PAYLOAD_TYPE:
        raise _malformed(f"its payload is of type {found.payloadType[:100]!r}")
    if len(found.signatures) > MAX_SIGNATURES:
        raise _malformed(f"it has more than {MAX_SIGNATURES} signatures")
    return found


def _holds(key: PublicKey, signature: bytes, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        as_public_key(key).verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def _base64(text: str) -> bytes:
    try:
        # The format allows both alphabets.
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed(f"base64: {error}") from error


def _malformed(why: str) -> ReceiptInvalid:
    return ReceiptInvalid(
        "this is no receipt of agentd", cause=why, remediation="give the file as it was exported"
    )
