"""JSON Web Tokens (RFC 7519, RFC 8725): checked against what the configuration pins."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.auth.jwks import FileKeySet, Jwk, KeySet, UrlKeySet
from agentd.model.credential import Credential
from agentd.model.errors import InvalidInput, Unauthenticated
from agentd.model.install import command
from agentd.model.principal import SCOPES, Principal

if TYPE_CHECKING:
    from types import ModuleType

# RFC 8725 §3.1, §3.2: signatures alone. With "none" anybody is anybody; with HS256 whoever can
# check a token can make one, and a public key that is taken for a secret is known to all.
KINDS: dict[str, tuple[str, ...]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
ALGORITHMS = tuple(name for names in KINDS.values() for name in names)
CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}
MAX_TOKEN = 16 << 10
MIN_RSA_BITS = 2048
MAX_SUBJECT = 200


class Issuer(msgspec.Struct, frozen=True, kw_only=True):
    """``grants`` maps values of the claim ``claim`` to scopes; empty, scopes stand for themselves.

    Whatever a token says, it gets none beyond ``scopes``. ``claim`` may be a path: ``a.b``.
    """

    name: str  # of ours; the principals are called jwt:NAME:SUBJECT
    issuer: str
    audience: tuple[str, ...]
    algorithms: tuple[str, ...]
    scopes: frozenset[str]
    claim: str = "scope"
    grants: Mapping[str, frozenset[str]] = {}
    subject: str = "sub"
    leeway: float = 30.0  # seconds that clocks may differ


class JwtProvider:
    def __init__(self, issuers: Sequence[tuple[Issuer, KeySet]]) -> None:
        """Raises InvalidInput where the configuration lets in what cannot be checked."""
        self._jwt = _pyjwt()
        self._issuers: dict[str, tuple[Issuer, KeySet]] = {}
        for issuer, keys in issuers:
            _check(issuer)
            if issuer.issuer in self._issuers:
                raise InvalidInput(f"the issuer {issuer.issuer!r} is there twice")
            self._issuers[issuer.issuer] = (issuer, keys)

    def authenticate(self, credential: Credential) -> Principal | None:
        token = credential.bearer
        if token is None or token.count(".") != 2:
            return None
        header, claims = self._peek(token)
        issuer, keys = self._issuer(claims)
        algorithm, kid = _check_header(header, issuer)
        claims = self._verified(token, issuer, algorithm, _candidates(keys, kid, algorithm))
        subject = claims.get(issuer.subject)
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT:
            raise _invalid(f"its {issuer.subject} is no name")
        if not subject.isprintable():
            raise _invalid(f"its {issuer.subject} has control characters")
        name = f"jwt:{issuer.name}:{subject}"
        return Principal(name, scopes_of(claims, issuer), "jwt", str(claims.get("jti", ""))[:200])

    def _peek(self, token: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what the token says of itself: enough to choose by, and no more than a claim."""
        if len(token) > MAX_TOKEN:
            raise _invalid(f"it has more than {MAX_TOKEN} bytes")
        try:
            told = self._jwt.decode_complete(token, options={"verify_signature": False})
        except self._jwt.PyJWTError as error:
            raise _invalid(str(error)) from error
        except (ValueError, TypeError, RecursionError) as error:
            raise _invalid("it is malformed") from error
        return told["header"], told["payload"]

    def _issuer(self, claims: Mapping[str, Any]) -> tuple[Issuer, KeySet]:
        issuer = claims.get("iss")
        found = self._issuers.get(issuer) if isinstance(issuer, str) else None
        if found is None:
            raise _invalid("its issuer is none of those accepted here")
        return found

    def _verified(
        self, token: str, issuer: Issuer, algorithm: str, keys: list[Jwk]
    ) -> dict[str, Any]:
        problem = "its signing key is not known"
        for jwk in keys:
            try:
                key = self._jwt.PyJWK(dict(jwk), algorithm=algorithm)
                _check_strength(key.key, algorithm)
                claims: dict[str, Any] = self._jwt.decode(
                    token,
                    key.key,
                    algorithms=[algorithm],
                    audience=list(issuer.audience),
                    issuer=issuer.issuer,
                    leeway=issuer.leeway,
                    options={"require": ["exp", "iss", "aud", issuer.subject]},
                )
            except self._jwt.InvalidSignatureError:
                problem = "its signature does not hold"
            except self._jwt.PyJWTError as error:
                raise _invalid(str(error)) from error
            except (ValueError, TypeError, OverflowError) as error:
                raise _invalid("it is malformed") from error
            else:
                return claims
        raise _invalid(problem)


def key_set(file: str | None, url: str | None) -> KeySet:
    if (file is None) == (url is None):
        raise InvalidInput(
            "an issuer's keys come from one place", remediation="give jwks_file or jwks_url"
        )
    return FileKeySet(file) if file is not None else UrlKeySet(url or "")


def scopes_of(claims: Mapping[str, Any], issuer: Issuer) -> frozenset[str]:
    """Return what the claims give, within what the issuer may give at all."""
    value: Any = claims
    for part in [issuer.claim] if issuer.claim in claims else issuer.claim.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    named = [word for word in words if isinstance(word, str)]
    if not issuer.grants:
        return frozenset(named) & issuer.scopes
    nothing: frozenset[str] = frozenset()
    return nothing.union(*(issuer.grants.get(word, nothing) for word in named)) & issuer.scopes


def _check(issuer: Issuer) -> None:
    wrong = [name for name in issuer.algorithms if name not in ALGORITHMS]
    if wrong or not issuer.algorithms:
        raise InvalidInput(
            f"issuer {issuer.name}: {wrong[0]!r} is no signature algorithm"
            if wrong
            else f"issuer {issuer.name} pins no algorithm",
            remediation=f"use some of: {', '.join(ALGORITHMS)}",
        )
    if not issuer.issuer or not issuer.audience or not all(issuer.audience):
        raise InvalidInput(
            f"issuer {issuer.name} needs its issuer and audience",
            remediation="tokens for another service would hold here too",
        )
    if unknown := (issuer.scopes.union(*issuer.grants.values())) - frozenset(SCOPES):
        raise InvalidInput(
            f"issuer {issuer.name}: unknown scope {sorted(unknown)[0]!r}",
            remediation=f"use some of: {', '.join(SCOPES)}",
        )


def _check_header(header: Mapping[str, Any], issuer: Issuer) -> tuple[str, str | None]:
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
        raise _invalid(f"its algorithm is not one of {', '.join(issuer.algorithms)}")
    if "crit" in header:
        raise _invalid("it needs an extension that is not known here")
    if kid is not None and not isinstance(kid, str):
        raise _invalid("its key id is no text")
    return algorithm, kid


def _candidates(keys: KeySet, kid: str | None, algorithm: str) -> list[Jwk]:
    """Keys of the kind that the algorithm takes: no other is ever tried with it."""
    fitting = [
        key
        for key in keys.find(kid)
        if algorithm in KINDS.get(key["kty"], ())
        and key.get("alg", algorithm) == algorithm
        and key.get("crv", CURVES.get(algorithm)) == CURVES.get(algorithm)
    ]
    if kid is None and len(fitting) > 1:
        raise _invalid("it does not say which key signed it")
    return fitting


def _check_strength(key: Any, algorithm: str) -> None:
    if algorithm in KINDS["RSA"] and key.key_size < MIN_RSA_BITS:
        raise _invalid(f"its key has {key.key_size} bits, and {MIN_RSA_BITS} are needed")


def _invalid(cause: str) -> Unauthenticated:
    return Unauthenticated("the token is not valid", cause=cause, remediation="get a new one")


def _pyjwt() -> "ModuleType":
    try:
        import cryptography  # noqa: F401  PyJWT has no signatures without it
        import jwt
    except ImportError as error:
        remediation = command("PyJWT", "cryptography")
        raise InvalidInput(
            "tokens need PyJWT", remediation=remediation, cause=str(error)
        ) from error
    return jwt
