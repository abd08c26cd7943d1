"""What configurations name: certificates, keys of signers and of issuers, policies."""

import datetime
import ipaddress
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

SHIPPED = Path(__file__).resolve().parents[2] / "src/agentd/policy/bundles"


def tls(folder: Path, *names: str) -> None:
    """``cert.pem`` and ``key.pem``, and ``ca.pem`` that signed it: of 127.0.0.1 and these."""
    of = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, names)]
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(of), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    (folder / "cert.pem").write_bytes(pem)
    (folder / "ca.pem").write_bytes(pem)
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (folder / "key.pem").chmod(0o600)


def signers(folder: Path) -> str:
    """A directory with one signer's public key."""
    where = folder / "signers"
    where.mkdir(mode=0o755, exist_ok=True)
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    (where / "alice.pem").write_bytes(
        public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    (where / "alice.pem").chmod(0o644)
    return str(where)


def jwks(folder: Path) -> str:
    where = folder / "jwks.json"
    where.write_text(json.dumps({"keys": []}))
    return str(where)


def bundle_copy(folder: Path, name: str = "strict") -> str:
    """A policy of one's own: as the shipped one, in a folder."""
    where = folder / "policy"
    where.mkdir(mode=0o755, exist_ok=True)
    for file in (SHIPPED / name).iterdir():
        (where / file.name).write_bytes(file.read_bytes())
        (where / file.name).chmod(0o644)
    return str(where)
