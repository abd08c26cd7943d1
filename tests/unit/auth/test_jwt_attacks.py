"""Tokens as an attacker makes them (RFC 8725 §2, and what was found since)."""

import base64
import hashlib
import hmac

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from tests.unit.auth.test_jwt import (
    AUD,
    ISS,
    Keys,
    claims,
    issuer,
    jwk,
    part,
    present,
    private,
    provider,
    refused,
    signed,
    token,
)

from agentd.auth.jwt import JwtProvider

# The order of P-256.
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def unpadded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def hs256(header, secret):
    text = f"{part(header)}.{part(claims())}"
    return f"{text}.{unpadded(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


@pytest.mark.parametrize(
    "kid",
    ["", "../../../../dev/null", "k1\0", "k1 ", "K1", "' OR '1'='1", "https://evil.example", "k*"],
)
def test_a_key_id_is_a_name_and_nothing_else(kid):
    """Neither a file, nor a query, nor nearly another: and no key at all is not any key."""
    refused(provider(), signed({"alg": "RS256", "kid": kid}, claims()), "key is not known")
    nameless = jwk("rsa", "k1")
    del nameless["kid"]
    found = [{"kid": None, **nameless}]
    refused(provider(*found), signed({"alg": "RS256", "kid": kid}, claims()), "not known")


@pytest.mark.parametrize("kid", [["k1"], {"k1": 1}, 1, 0, True])
def test_a_key_id_is_text(kid):
    refused(provider(), signed({"alg": "RS256", "kid": kid}, claims()), "")


@pytest.mark.parametrize("secret", [b"", b"\0", b"secret"])
def test_a_shared_secret_opens_nothing_even_where_one_lies_among_the_keys(secret):
    oct_key = {"kty": "oct", "kid": "k1", "k": unpadded(secret), "alg": "HS256"}
    who = provider(oct_key, jwk("rsa", "k2"))
    refused(who, hs256({"alg": "HS256", "kid": "k1"}, secret), "its algorithm")
    lying = hs256({"alg": "RS256", "kid": "k1"}, secret)
    refused(who, lying, "not known")


@pytest.mark.parametrize(
    "more",
    [
        lambda: {"jwk": jwk("other-rsa", "k1")},
        lambda: {"jwk": jwk("other-rsa", "k1"), "jku": "https://evil.example/keys"},
        lambda: {"x5c": [base64.b64encode(b"certificate").decode()]},
        lambda: {"x5t": "AAAA", "x5t#S256": "AAAA", "x5u": "https://evil.example"},
    ],
)
def test_the_header_brings_no_key_that_is_believed(more):
    key = private("other-rsa")
    text = jwt.encode(claims(), key, algorithm="RS256", headers={"kid": "k1", **more()})
    refused(provider(), text, "signature")


@pytest.mark.parametrize("more", [{"b64": False}, {"b64": False, "crit": ["b64"]}])
def test_a_payload_is_never_taken_as_it_stands(more):
    """RFC 7797: the part between the dots would be the claims themselves, or elsewhere."""
    header = {"alg": "RS256", "kid": "k1", **more}
    refused(provider(), signed(header, claims()), "")


@pytest.mark.parametrize("crit", [None, "b64", [], ["exp"], ["alg"], {}])
def test_a_list_of_what_must_be_understood_is_not_passed_over_whatever_is_in_it(crit):
    refused(provider(), signed({"alg": "RS256", "kid": "k1", "crit": crit}, claims()), "")


@pytest.mark.parametrize(("r", "s"), [(0, 0), (0, 1), (1, 0), (N, N), (N, 0), (1, N)])
def test_numbers_that_hold_for_every_message_are_no_signature(r, s):
    """CVE-2022-21449, psychic signatures."""
    text = f"{part({'alg': 'ES256', 'kid': 'k1'})}.{part(claims())}"
    value = unpadded(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
    who = provider(jwk("ec", "k1"), algorithms=("ES256",))
    assert present(who, token("ec", "ES256"))
    refused(who, f"{text}.{value}", "signature")


def test_a_signature_in_another_form_is_none():
    """DER, as X.509 has it, where JWS has two numbers of one length."""
    from cryptography.hazmat.primitives import hashes

    text = f"{part({'alg': 'ES256', 'kid': 'k1'})}.{part(claims())}"
    der = private("ec").sign(text.encode(), ec.ECDSA(hashes.SHA256()))
    refused(provider(jwk("ec", "k1"), algorithms=("ES256",)), f"{text}.{unpadded(der)}", "")


def test_a_key_of_the_other_curve_is_never_tried():
    key = ed448.Ed448PrivateKey.generate()
    public = jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "k1"}
    text = jwt.encode(claims(), key, algorithm="EdDSA", headers={"kid": "k1"})
    refused(provider(public, algorithms=("EdDSA",)), text, "not known")


def test_one_issuer_does_not_speak_for_another():
    """Both use the key id k1; each signs for itself alone."""
    other = "https://other.example"
    who = JwtProvider(
        [
            (issuer(), Keys(jwk("rsa", "k1"))),
            (issuer(name="other", issuer=other), Keys(jwk("other-rsa", "k1"))),
        ]
    )
    assert present(who, token("other-rsa", iss=other)).name == "jwt:other:ann"
    refused(who, token("other-rsa", iss=ISS), "signature")
    refused(who, token("rsa", iss=other), "signature")


@pytest.mark.parametrize(
    "raw",
    [
        '{"alg":"none","alg":"RS256","kid":"k1"}',
        '{"alg":"RS256","kid":"k1","alg":"none"}',
        '{"alg":"RS256","kid":"k9","kid":"k1"}',
    ],
)
def test_a_name_that_is_there_twice_changes_nothing_about_who_signed(raw):
    """Whichever of the two is read: the signature is of the right key, or it is refused."""
    forged = f"{unpadded(raw.encode())}.{part(claims(sub='root'))}."
    refused(provider(), forged, "")
    refused(provider(), forged + unpadded(b"x" * 256), "")


@pytest.mark.parametrize("text", ['{"iss": "x", "iss": "%s", "sub": "root"}', '{"iss": ["%s"]}'])
def test_claims_that_nobody_signed_are_none(text):
    body = unpadded((text % ISS).encode())
    _, _, signature = token().split(".")
    refused(provider(), f"{part({'alg': 'RS256', 'kid': 'k1'})}.{body}.{signature}", "")


@pytest.mark.parametrize("change", ["payload", "header", "both", "swapped"])
def test_parts_of_two_tokens_make_no_third(change):
    one, two = token(sub="ann").split("."), token(sub="bob", headers={"x": 1}).split(".")
    mixed = {
        "payload": [one[0], two[1], one[2]],
        "header": [two[0], one[1], one[2]],
        "both": [two[0], two[1], one[2]],
        "swapped": [one[1], one[0], one[2]],
    }[change]
    refused(provider(), ".".join(mixed), "")


@pytest.mark.parametrize("aud", [AUD.upper(), AUD + "/", AUD + " ", "agent", [AUD + "x"], ""])
def test_an_audience_is_a_whole_name(aud):
    refused(provider(), signed({"alg": "RS256", "kid": "k1"}, claims(aud=aud)), "")


def test_claims_nest_only_so_deep():
    text = f"{part({'alg': 'RS256', 'kid': 'k1'})}.{unpadded(b'[' * 11_000)}.AAAA"
    refused(provider(), text, "")
    assert present(provider(), signed({"alg": "RS256", "kid": "k1"}, claims(x=[[[[1]]]])))
