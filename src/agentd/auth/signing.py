"""Signed requests: a JSON object that says, and proves, who asks, whatever way it came.

The member ``signature`` is added to the object: {"key", "nonce", "issued", "alg", "value"}, and
"expires" and "audience" where they are wanted. Signed is ``DOMAIN`` and the canonical JSON of the
object without ``signature.value``: nothing of it can be changed, dropped or added.
"""

import re
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from agentd.auth.keyfiles import key_id
from agentd.model import typed
from agentd.model.canonical import canonical
from agentd.model.errors import InvalidInput, Unauthenticated
from agentd.model.principal import Principal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

# No other thing that the same key may sign begins like this.
DOMAIN = b"agentd-request-v1\n"
MEMBER = "signature"
ALGORITHM = "ed25519"
MAX_AGE = 300.0  # seconds
SKEW = 30.0  # seconds that a signer's clock may be ahead of ours
_NONCE_BYTES = 16
_NONCE = re.compile(r"[A-Za-z0-9_-]{22,86}")  # 16 to 64 bytes
_VALUE = re.compile(r"[A-Za-z0-9_-]{86}")  # 64 bytes
_HINT = "sign it with a key that the daemon trusts: agentd sign"


class ReplayTable(Protocol):
    """Remembers which signed requests were used. Thread-safe."""

    def first_use(self, key: str, nonce: str, issued: float) -> bool:
        """Return whether ``key`` uses ``nonce`` for the first time; it is taken down in the same
        step.

        ``issued`` is the instant that the request itself names, in seconds since 1970. When this
        returns True, the nonce outlives the daemon, and the machine's power. Raises RequestStale
        for a request so old that its nonce may be forgotten, Full where there is no room.
        """


class SignatureMissing(Unauthenticated):
    code = "signature_missing"


class SignerUnknown(Unauthenticated):
    code = "signer_unknown"


class SignatureInvalid(Unauthenticated):
    code = "signature_invalid"


class RequestStale(Unauthenticated):
    code = "request_stale"


class RequestFromFuture(Unauthenticated):
    code = "request_from_future"


class NonceReplayed(Unauthenticated):
    code = "nonce_replayed"


class WrongAudience(Unauthenticated):
    code = "wrong_audience"


class Signer(msgspec.Struct, frozen=True, kw_only=True):
    """A trusted key, and the principal that it acts as. ``expires`` is in seconds since 1970."""

    name: str
    key_id: str
    key: "Ed25519PublicKey"
    principal: str
    scopes: frozenset[str]
    expires: float | None = None

    def acts_as(self) -> Principal:
        return Principal(self.principal, self.scopes, "signed", self.key_id)


class Trusted(Protocol):
    def find(self, key: str) -> Signer | None: ...


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request's signature; times are seconds since 1970."""

    key: str
    nonce: str
    issued: float
    alg: str
    value: str
    expires: float | None = None
    audience: str | None = None


def sign(
    request: Mapping[str, Any],
    private_key: "Ed25519PrivateKey",
    *,
    audience: str | None = None,
    ttl: float | None = None,
    now: float | None = None,
) -> dict[str, Any]:
    """``request`` with a signature. ``audience`` is the daemon that it is for, where that has a
    name; ``ttl`` seconds it holds, if less than the daemon grants. Raises InvalidInput."""
    if MEMBER in request:
        raise InvalidInput(
            "the request has a signature already", remediation=f"leave out {MEMBER!r}"
        )
    issued = round(time.time() if now is None else now, 3)
    signature: dict[str, Any] = {
        "key": key_id(private_key.public_key()),
        "nonce": _text(secrets.token_bytes(_NONCE_BYTES)),
        "issued": issued,
        "alg": ALGORITHM,
    }
    if ttl is not None:
        signature["expires"] = issued + ttl
    if audience is not None:
        signature["audience"] = audience
    value = private_key.sign(signed_bytes({**request, MEMBER: signature}))
    return {**request, MEMBER: {**signature, "value": _text(value)}}


def signed_bytes(request: Mapping[str, Any]) -> bytes:
    """Return what the signature is of. Raises InvalidInput for what is no JSON."""
    kept = {name: value for name, value in request[MEMBER].items() if name != "value"}
    return DOMAIN + canonical({**request, MEMBER: kept})


def verify(
    request: Mapping[str, Any],
    signers: Trusted,
    replay: ReplayTable,
    now: float,
    skew: float = SKEW,
    *,
    max_age: float = MAX_AGE,
    audience: str | None = None,
) -> Signer:
    """Return who signed ``request``, and use it up.

    ``audience`` is what this daemon is called, if anything: then requests must name it. Raises
    SignatureMissing, SignerUnknown, SignatureInvalid, WrongAudience, RequestStale,
    RequestFromFuture, NonceReplayed, InvalidInput (it is no JSON), Full (no room for its nonce).
    """
    signature = _signature(request)
    signer = signers.find(signature.key)
    if signer is None:
        raise SignerUnknown(
            f"the key {signature.key[:64]!r} is not trusted here",
            remediation="have its public key put among the trusted signers",
        )
    _check_value(request, signature, signer)
    # All that follows is true of what the signer has signed, not of what anybody sends.
    if signer.expires is not None and now >= signer.expires:
        raise SignerUnknown(f"the trust in signer {signer.name} has ended", remediation=_HINT)
    _check_audience(signature, audience)
    _check_time(signature, now, skew, max_age)
    if not replay.first_use(signature.key, signature.nonce, signature.issued):
        raise NonceReplayed(
            "this signed request was used before",
            cause=f"its nonce is {signature.nonce[:32]}",
            remediation="sign each request anew",
        )
    return signer


def _signature(request: Mapping[str, Any]) -> Signature:
    if MEMBER not in request:
        raise SignatureMissing("the request is not signed", remediation=_HINT)
    try:
        signature = typed.convert(request[MEMBER], Signature)
    except msgspec.ValidationError as error:
        raise _invalid("it is malformed", str(error)) from None
    if signature.alg != ALGORITHM:
        raise _invalid(f"its algorithm is not {ALGORITHM}")
    if not _NONCE.fullmatch(signature.nonce):
        raise _invalid("its nonce is not 16 to 64 bytes in base64url without padding")
    if not _VALUE.fullmatch(signature.value):
        raise _invalid("its value is not 64 bytes in base64url without padding")
    return signature


def _check_value(request: Mapping[str, Any], signature: Signature, signer: Signer) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        signer.key.verify(urlsafe_b64decode(signature.value + "=="), signed_bytes(request))
    except InvalidSignature:
        raise _invalid("it is not of this request, or of another key") from None


def _check_audience(signature: Signature, audience: str | None) -> None:
    if signature.audience == audience:
        return
    fix = "sign it for this one: agentd sign --audience NAME, as auth.signed.audience is"
    if audience is None:
        cause = "it names an audience, and this daemon has no name"
        fix = "sign it without an audience, or give the daemon one: auth.signed.audience"
    else:
        cause = f"this daemon is called {audience!r}"
    raise WrongAudience(
        "the request was signed for another daemon",
        cause=cause,
        remediation=fix,
    )


def _check_time(signature: Signature, now: float, skew: float, max_age: float) -> None:
    if signature.issued > now + skew:
        raise RequestFromFuture(
            "the request was signed in the future",
            cause=f"{signature.issued - now:.0f} s ahead of this daemon's clock",
            remediation="set the clocks; NTP does",
        )
    ended = signature.expires is not None and now >= signature.expires
    if now - signature.issued > max_age or ended:
        bound = "it has expired" if ended else f"at most {max_age:g} s are taken"
        raise RequestStale(
            f"the request was signed {now - signature.issued:.0f} s ago",
            cause=bound,
            remediation="sign it anew, and set the clocks",
        )


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _invalid(cause: str, detail: str = "") -> SignatureInvalid:
    return SignatureInvalid(
        "the signature does not hold",
        cause=f"{cause}: {detail}" if detail else cause,
        remediation=_HINT,
    )
