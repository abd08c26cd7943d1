"""A certificate authority of one sandbox: it alone trusts it, and only for the names of its rules.

Its key is in the memory of whoever keeps the sandbox and of the terminator, and nowhere else.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import msgspec

#: Programs read a bundle once, so that what is in it cannot be renewed: as long as sandboxes live.
_LASTS = timedelta(days=366)
_SKEW = timedelta(hours=1)  # clocks that are late
_MOST_NAMES = 512
_NOBODYS = "invalid"  # RFC 6761


class Authority(msgspec.Struct, frozen=True):
    """``key`` and ``certificate`` are PEM. ``names`` are what it may speak for, and all below."""

    key: str
    certificate: str
    names: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Authority(names={self.names!r})"

    def covers(self, host: str) -> bool:
        """Return whether it may speak for ``host``, which may be a wildcard."""
        name = host.removeprefix("*.")
        return any(name == own or name.endswith(f".{own}") for own in self.names)


def make(hosts: Iterable[str]) -> Authority:
    """Return a new one for names and wildcards."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    names = tuple(dict.fromkeys(host.removeprefix("*.") for host in hosts))[:_MOST_NAMES]
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agentd, for one sandbox")])
    now = datetime.now(UTC)
    usage = dict.fromkeys(
        (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
            *("key_agreement", "encipher_only", "decipher_only"),
        ),
        False,
    )
    # Where there are none it is good for a name that nobody has, and not for all there are.
    constraints = x509.NameConstraints(
        permitted_subtrees=[x509.DNSName(name) for name in names or (_NOBODYS,)],
        excluded_subtrees=[x509.IPAddress(ip_network(net)) for net in ("0.0.0.0/0", "::/0")],
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LASTS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(constraints, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
        certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        names=names,
    )
