"""Certificates for the names that a sandbox dials, by its own authority."""

from collections import OrderedDict
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL
from OpenSSL.crypto import X509, PKey

_MOST = 256  # names of a sandbox whose certificates are kept
_LASTS = timedelta(days=2)
_RENEWED = timedelta(days=1)  # before its end
_SKEW = timedelta(hours=1)


class LeafIssuer:
    """Issues those of one sandbox. One key for all of its names never leaves this process."""

    def __init__(self, key: str, certificate: str) -> None:
        """Both are PEM. Raises ValueError."""
        loaded = serialization.load_pem_private_key(key.encode(), None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError("the authority's key is none of an elliptic curve")
        self._authority_key = loaded
        self._authority = x509.load_pem_x509_certificate(certificate.encode())
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._pkey = PKey.from_cryptography_key(self._key)
        self._made: OrderedDict[str, tuple[X509, datetime]] = OrderedDict()

    def use(self, connection: SSL.Connection, name: str) -> None:
        """Show the certificate of ``name`` by a connection."""
        connection.use_certificate(self._certificate(name))
        connection.use_privatekey(self._pkey)

    def pair(self, name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """Return the certificate of a name and its key, for a server of one's own."""
        return self._certificate(name).to_cryptography(), self._key

    def _certificate(self, name: str) -> X509:
        now = datetime.now(UTC)
        found = self._made.get(name)
        if found is None or found[1] - now < _RENEWED:
            found = self._made[name] = self._make(name, now)
            while len(self._made) > _MOST:
                self._made.popitem(last=False)
        self._made.move_to_end(name)
        return found[0]

    def _make(self, name: str, now: datetime) -> tuple[X509, datetime]:
        end = min(now + _LASTS, self._authority.not_valid_after_utc)
        authority = self._authority_key.public_key()
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        made = (
            x509.CertificateBuilder()
            # Without a common name, which may be no longer than 64 characters.
            .subject_name(x509.Name([]))
            .issuer_name(self._authority.subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(end)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False
            )
            .sign(self._authority_key, hashes.SHA256())
        )
        return X509.from_cryptography(made), end
