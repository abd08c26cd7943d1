"""A certificate authority of the test's own."""

import datetime
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.upstream import ClosedSocket


class Authority:
    """A CA of the test's: ``ca`` its file, ``server`` the context of who has its certificate."""

    def __init__(self, folder: Path, names: Sequence[str], addresses: Sequence[str]) -> None:
        def named(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        now = datetime.datetime.now(datetime.UTC)
        root, leaf = (
            ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP256R1()),
        )

        def certificate(
            subject: str, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
        ) -> x509.Certificate:
            usage = x509.KeyUsage(
                *(True, False, False, False, False),
                key_cert_sign=subject == "root",
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            )
            ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
            aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key())
            return (
                x509.CertificateBuilder()
                .subject_name(named(subject))
                .issuer_name(named("root"))
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(days=1))
                .not_valid_after(now + datetime.timedelta(days=1))
                .add_extension(extension, critical=True)
                .add_extension(usage, critical=True)
                .add_extension(ski, critical=False)
                .add_extension(aki, critical=False)
                .sign(root, hashes.SHA256())
            )

        alternatives = x509.SubjectAlternativeName(
            [
                *(x509.DNSName(name) for name in names),
                *(x509.IPAddress(ip_address(address)) for address in addresses),
            ]
        )
        pem = serialization.Encoding.PEM
        ca = folder / "ca.pem"
        ca.write_bytes(
            certificate("root", root, x509.BasicConstraints(ca=True, path_length=0)).public_bytes(
                pem
            )
        )
        chain = folder / "leaf.pem"
        chain.write_bytes(
            certificate("leaf", leaf, alternatives).public_bytes(pem)
            + leaf.private_bytes(
                pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        self.ca = str(ca)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.sslsocket_class = ClosedSocket
        self.server.load_cert_chain(chain)
        self.hellos: list[str] = []
        self.server.sni_callback = lambda wrapped, name, context: self.hellos.append(name or "")
