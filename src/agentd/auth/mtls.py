"""Client certificates: which principal the one that the TLS layer verified stands for."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.model.credential import Credential
from agentd.model.errors import Forbidden, InvalidInput, Unauthenticated
from agentd.model.install import command
from agentd.model.principal import Principal

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

KINDS = ("uri", "dns", "email", "subject", "sha256")


class CertificateRule(msgspec.Struct, frozen=True):
    """``match`` names one identity, whole: ``uri:spiffe://acme/ci``, ``dns:ci.acme.example``,
    ``email:ci@acme.example``, ``subject:CN=ci,O=Acme`` (RFC 4514) or ``sha256:HEX`` of the DER.
    """

    match: str
    principal: str
    scopes: frozenset[str]


class MtlsProvider:
    """The first rule that matches holds."""

    def __init__(
        self,
        rules: Sequence[CertificateRule],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Raises InvalidInput for a rule that could match nothing, or without cryptography."""
        for rule in rules:
            check_match(rule.match)
        self._rules = tuple(rules)
        self._clock = clock

    def authenticate(self, credential: Credential) -> Principal | None:
        der = credential.certificate
        if der is None:
            return None
        certificate = _load(der)
        # The handshake checked it too; a connection may outlive its certificate.
        now = self._clock()
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise Unauthenticated(
                "the client certificate is not valid now",
                cause=f"it holds from {certificate.not_valid_before_utc:%Y-%m-%d} "
                f"to {certificate.not_valid_after_utc:%Y-%m-%d}, UTC",
                remediation="renew it",
            )
        _check_purpose(certificate)
        fingerprint = sha256(der).hexdigest()
        for rule in self._rules:
            if _matches(rule.match, certificate, fingerprint):
                return Principal(rule.principal, rule.scopes, "mtls", f"sha256:{fingerprint}")
        raise Forbidden(
            f"the client certificate sha256:{fingerprint} is not let in",
            remediation="add [[auth.certificates]] with a match for it",
        )


def check_match(match: str) -> None:
    """Raises InvalidInput."""
    kind, colon, value = match.partition(":")
    if kind not in KINDS or not colon or not value:
        raise InvalidInput(
            f"{match!r} matches no certificate",
            remediation=f"write KIND:VALUE, with one of: {', '.join(KINDS)}",
        )
    if kind == "sha256" and (len(value) != 64 or set(value.lower()) - set("0123456789abcdef")):
        raise InvalidInput(f"{match!r} is no SHA-256", remediation="give its 64 hex digits")
    if kind == "subject":
        try:
            _x509().Name.from_rfc4514_string(value)
        except ValueError as error:
            raise InvalidInput(
                f"{match!r} is no subject", remediation="write it as subject:CN=ci,O=Acme"
            ) from error


def _matches(match: str, certificate: "Certificate", fingerprint: str) -> bool:
    kind, _, value = match.partition(":")
    if kind == "sha256":
        return compare_digest(value.lower(), fingerprint)
    x509 = _x509()
    if kind == "subject":
        return bool(certificate.subject == x509.Name.from_rfc4514_string(value))
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    if kind == "uri":
        return value in names.get_values_for_type(x509.UniformResourceIdentifier)
    if kind == "dns":
        # Whole: a wildcard in a certificate speaks for hosts, and is no one's name.
        dns = names.get_values_for_type(x509.DNSName)
        return value.lower() in (name.lower() for name in dns)
    return value in names.get_values_for_type(x509.RFC822Name)


def _check_purpose(certificate: "Certificate") -> None:
    x509 = _x509()
    try:
        found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    usage = x509.oid.ExtendedKeyUsageOID
    if usage.CLIENT_AUTH not in found and usage.ANY_EXTENDED_KEY_USAGE not in found:
        raise Unauthenticated(
            "the certificate is not for clients", remediation="use one with clientAuth"
        )


def _load(der: bytes) -> "Certificate":
    x509 = _x509()
    try:
        certificate: Certificate = x509.load_der_x509_certificate(der)
        certificate.extensions  # noqa: B018  parsed late: a broken one fails here
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise Unauthenticated(
            "the client certificate is malformed",
            cause=str(error),
            remediation="present one in X.509, as openssl x509 reads it",
        ) from error
    return certificate


def _x509() -> Any:
    try:
        from cryptography import x509
    except ImportError as error:
        raise InvalidInput(
            "client certificates need cryptography",
            remediation=command("cryptography"),
            cause=str(error),
        ) from error
    return x509
