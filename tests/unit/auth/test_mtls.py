from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agentd.auth.mtls import CertificateRule, MtlsProvider, check_match
from agentd.model.credential import Credential
from agentd.model.errors import Forbidden, InvalidInput, Unauthenticated

NOW = datetime(2026, 6, 1, tzinfo=UTC)
RUN = frozenset({"run"})


@cache
def key():
    return ec.generate_private_key(ec.SECP256R1())


def certificate(*names, common="ci", usage=(ExtendedKeyUsageOID.CLIENT_AUTH,), days=30):
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key().public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=days))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    return builder.sign(key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def provider(*matches, now=NOW):
    rules = [CertificateRule(match, f"p{n}", RUN) for n, match in enumerate(matches)]
    return MtlsProvider(rules, lambda: now)


def present(who, der):
    return who.authenticate(Credential(certificate=der))


SPIFFE = x509.UniformResourceIdentifier("spiffe://acme/ci")
NAMES = (SPIFFE, x509.DNSName("CI.acme.example"), x509.RFC822Name("ci@acme.example"))


@pytest.mark.parametrize(
    "match",
    [
        "uri:spiffe://acme/ci",
        "dns:ci.acme.example",
        "email:ci@acme.example",
        "subject:CN=ci,O=Acme",
        "sha256:",  # of that very certificate: each signature is another
    ],
)
def test_a_certificate_is_known_by_one_of_its_names(match):
    der = certificate(*NAMES, usage=())
    if match == "sha256:":
        match += sha256(der).hexdigest().upper()
    who = present(provider(match), der)
    assert (who.name, who.scopes, who.via) == ("p0", RUN, "mtls")
    assert who.credential == "sha256:" + sha256(der).hexdigest()


@pytest.mark.parametrize(
    "match",
    [
        "uri:spiffe://acme/c",
        "uri:spiffe://acme/ci/more",
        "uri:spiffe://acme/CI",
        "dns:acme.example",
        "dns:*.acme.example",
        "dns:ci@acme.example",
        "email:CI@acme.example",
        "subject:CN=ci",
        "subject:O=Acme,CN=ci",
        "subject:CN=ci,O=Acme,C=DE",
        "sha256:" + "0" * 64,
    ],
)
def test_it_must_be_the_whole_name(match):
    with pytest.raises(Forbidden, match="is not let in"):
        present(provider(match), certificate(*NAMES))


def test_a_name_in_another_field_is_another_name():
    der = certificate(x509.DNSName("ci@acme.example"), common="spiffe://acme/ci")
    with pytest.raises(Forbidden):
        present(provider("uri:spiffe://acme/ci", "email:ci@acme.example"), der)
    with pytest.raises(Forbidden):
        present(provider("uri:spiffe://acme/ci"), certificate())


def test_a_wildcard_in_a_certificate_is_no_ones_name():
    with pytest.raises(Forbidden):
        present(provider("dns:ci.acme.example"), certificate(x509.DNSName("*.acme.example")))


def test_the_first_rule_holds():
    assert (
        present(provider("subject:CN=ci,O=Acme", "uri:spiffe://acme/ci"), certificate(SPIFFE)).name
        == "p0"
    )


@pytest.mark.parametrize("now", [NOW + timedelta(days=31), NOW - timedelta(days=2)])
def test_a_connection_does_not_outlive_its_certificate(now):
    with pytest.raises(Unauthenticated, match="not valid now"):
        present(provider("uri:spiffe://acme/ci", now=now), certificate(SPIFFE))


def test_a_servers_certificate_is_no_clients():
    der = certificate(SPIFFE, usage=(ExtendedKeyUsageOID.SERVER_AUTH,))
    with pytest.raises(Unauthenticated, match="not for clients"):
        present(provider("uri:spiffe://acme/ci"), der)
    for usage in ((), (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)):
        assert present(provider("uri:spiffe://acme/ci"), certificate(SPIFFE, usage=usage))


@pytest.mark.parametrize("der", [b"", b"x", certificate(SPIFFE)[:-9]])
def test_what_is_no_certificate(der):
    with pytest.raises(Unauthenticated, match="malformed"):
        present(provider("uri:spiffe://acme/ci"), der)


def test_without_a_certificate_it_is_anothers():
    assert provider().authenticate(Credential(peer_uid=0)) is None


@pytest.mark.parametrize(
    "match",
    [
        "",
        "uri",
        "uri:",
        "cn:ci",
        "spiffe://acme/ci",
        "sha256:ab",
        "subject:ci",
        "sha256:" + "g" * 64,
    ],
)
def test_a_rule_that_could_match_nothing_is_wrong(match):
    with pytest.raises(InvalidInput):
        check_match(match)
    with pytest.raises(InvalidInput):
        provider(match)


def test_without_the_package_the_message_names_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    with pytest.raises(InvalidInput, match="pip install cryptography"):
        present(provider(), b"x")
