import base64
import hashlib
import hmac
import json
import time
from functools import cache

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from agentd.auth.jwt import Issuer, JwtProvider, key_set, scopes_of
from agentd.model.credential import Credential
from agentd.model.errors import InvalidInput, Unauthenticated
from agentd.model.principal import SCOPES

ISS, AUD = "https://id.example", "agentd"


@cache
def private(kind):
    makers = {
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "other-rsa": lambda: rsa.generate_private_key(65537, 2048),
        "short-rsa": lambda: rsa.generate_private_key(65537, 1024),  # noqa: S505
        "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ec384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ed": ed25519.Ed25519PrivateKey.generate,
    }
    return makers[kind]()


def jwk(kind, kid, **more):
    algorithms = jwt.algorithms
    maker = {
        "rsa": algorithms.RSAAlgorithm,
        "other-rsa": algorithms.RSAAlgorithm,
        "short-rsa": algorithms.RSAAlgorithm,
        "ec": algorithms.ECAlgorithm,
        "ec384": algorithms.ECAlgorithm,
        "ed": algorithms.OKPAlgorithm,
    }[kind]
    public = maker.to_jwk(private(kind).public_key(), as_dict=True)
    public.pop("key_ops", None)
    return public | {"kid": kid, **more}


class Keys:
    def __init__(self, *keys):
        self._keys = keys

    def find(self, kid):
        return [k for k in self._keys if kid is None or k["kid"] == kid]


def issuer(**changes):
    fields = {
        "name": "corp",
        "issuer": ISS,
        "audience": (AUD,),
        "algorithms": ("RS256",),
        "scopes": frozenset({"run", "files"}),
    }
    return Issuer(**(fields | changes))


def provider(*keys, **changes):
    return JwtProvider([(issuer(**changes), Keys(*(keys or [jwk("rsa", "k1")])))])


def claims(**changes):
    now = int(time.time())
    said = {"iss": ISS, "aud": AUD, "sub": "ann", "exp": now + 600, "scope": "run"} | changes
    return {name: value for name, value in said.items() if value is not None}


def token(kind="rsa", alg="RS256", kid="k1", headers=None, **changes):
    headers = ({"kid": kid} if kid else {}) | (headers or {})
    return jwt.encode(claims(**changes), private(kind), algorithm=alg, headers=headers)


def present(who, text):
    return who.authenticate(Credential(authorization=f"Bearer {text}"))


def part(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def signed(header, body):
    """With the right key, whatever it says: PyJWT does not make all that others may."""
    text = f"{part(header)}.{part(body)}"
    signature = private("rsa").sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def refused(who, text, why):
    with pytest.raises(Unauthenticated) as caught:
        present(who, text)
    assert why in caught.value.cause.lower()
    assert text not in str(caught.value)


def test_a_good_token_gives_its_subject_within_its_issuers_name():
    who = present(provider(), token(jti="t1"))
    assert (who.name, who.scopes, who.via, who.credential) == ("jwt:corp:ann", {"run"}, "jwt", "t1")


@pytest.mark.parametrize(
    ("kind", "alg"),
    [("rsa", "RS256"), ("rsa", "PS512"), ("ec", "ES256"), ("ec384", "ES384"), ("ed", "EdDSA")],
)
def test_each_algorithm_that_is_pinned_works(kind, alg):
    who = provider(jwk(kind, "k1"), algorithms=(alg,))
    assert present(who, token(kind, alg)).name == "jwt:corp:ann"
    refused(provider(jwk(kind, "k1"), algorithms=("ES512",)), token(kind, alg), "its algorithm")


@pytest.mark.parametrize("form", ["pem", "der", "jwk"])
def test_a_public_key_is_never_taken_for_a_secret(form):
    public = private("rsa").public_key()
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    secret = {
        "pem": public.public_bytes(serialization.Encoding.PEM, info),
        "der": public.public_bytes(serialization.Encoding.DER, info),
        "jwk": json.dumps(jwk("rsa", "k1")).encode(),
    }[form]
    text = f"{part({'alg': 'HS256', 'kid': 'k1'})}.{part(claims())}"
    mac = hmac.new(secret, text.encode(), hashlib.sha256).digest()
    forged = f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    refused(provider(), forged, "its algorithm is not one of rs256")


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None, 1, ["RS256"]])
def test_a_token_without_a_signature_is_none(alg):
    body = f"{part({'alg': alg, 'kid': 'k1'})}.{part(claims())}."
    refused(provider(), body, "")


@pytest.mark.parametrize("alg", ["HS256", "HS512", "none", "ES256K", "rs256", ""])
def test_no_configuration_can_let_in_what_proves_nothing(alg):
    with pytest.raises(InvalidInput, match="no signature algorithm"):
        provider(algorithms=("RS256", alg))


@pytest.mark.parametrize(
    "wrong", [{"algorithms": ()}, {"audience": ()}, {"audience": ("",)}, {"issuer": ""}]
)
def test_nothing_is_left_open(wrong):
    with pytest.raises(InvalidInput):
        provider(**wrong)


def test_unknown_scopes_and_issuers_that_are_there_twice_are_found_at_once():
    with pytest.raises(InvalidInput, match="unknown scope 'fly'"):
        provider(grants={"x": frozenset({"fly"})})
    with pytest.raises(InvalidInput, match="twice"):
        JwtProvider([(issuer(), Keys()), (issuer(name="b"), Keys())])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"exp": 1}, "expired"),
        ({"exp": int(time.time()) - 31}, "expired"),
        ({"exp": None}, '"exp"'),
        ({"exp": "soon"}, "exp"),
        ({"exp": float("inf")}, "exp"),
        ({"nbf": int(time.time()) + 86_400}, "not yet valid"),
        ({"iat": int(time.time()) + 86_400}, "not yet valid"),
        ({"aud": "other"}, "audience"),
        ({"aud": ["other"]}, "audience"),
        ({"aud": None}, '"aud"'),
        ({"aud": []}, '"aud"'),
        ({"aud": {"agentd": 1}}, "claim"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": ISS + "/"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"iss": [ISS]}, "issuer"),
        ({"sub": None}, '"sub"'),
        ({"sub": ""}, "sub"),
        ({"sub": "a\nb"}, "control"),
        ({"sub": "x" * 201}, "sub"),
    ],
)
def test_claims_that_do_not_hold(changes, why):
    text = signed({"alg": "RS256", "kid": "k1"}, claims(**changes))
    refused(provider(), text, why)


def test_clocks_may_differ_a_little():
    assert present(provider(), token(exp=int(time.time()) - 5))
    assert present(provider(), token(aud=["x", AUD]))


def test_the_signature_must_be_of_the_key_it_names():
    who = provider(jwk("rsa", "k1"), jwk("other-rsa", "k2"))
    assert present(who, token("other-rsa", kid="k2"))
    refused(who, token("other-rsa", kid="k1"), "signature")
    refused(who, token(kid="k3"), "key is not known")
    head, body, signature = token().split(".")
    for broken in (f"{head}.{part(claims(sub='root'))}.{signature}", f"{head}.{body}."):
        refused(who, broken, "signature")


def test_a_token_without_a_key_id_needs_an_issuer_with_one_key():
    assert present(provider(), token(kid=None))
    refused(provider(jwk("rsa", "k1"), jwk("other-rsa", "k2")), token(kid=None), "which key")


def test_a_key_serves_its_own_kind_and_algorithm_alone():
    both = ("RS256", "PS256", "ES256", "ES384")
    refused(provider(jwk("rsa", "k1", alg="PS256"), algorithms=both), token(), "not known")
    refused(provider(jwk("ec", "k1"), algorithms=both), token(), "not known")
    refused(provider(jwk("ec384", "k1"), algorithms=both), token("ec", "ES256"), "not known")
    refused(provider(jwk("rsa", "k1"), algorithms=both), token("ec", "ES256"), "not known")
    lying = jwk("ec384", "k1", crv="P-256")
    refused(provider(lying, algorithms=both), token("ec", "ES256"), "")


def test_a_short_key_is_no_key():
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        text = token("short-rsa")
    refused(provider(jwk("short-rsa", "k1")), text, "1024 bits")


@pytest.mark.parametrize(
    "headers",
    [
        {"jwk": {"kty": "oct"}},
        {"jku": "https://evil.example"},
        {"x5u": "https://evil.example"},
    ],
)
def test_a_token_does_not_bring_its_own_key(headers):
    assert present(provider(), token(headers=headers))
    refused(provider(), token("other-rsa", headers=headers), "signature")


@pytest.mark.parametrize("more", [{"crit": ["b64"], "b64": True}, {"crit": ["x"]}, {"crit": []}])
def test_an_extension_that_is_not_known_is_not_passed_over(more):
    header = {"alg": "RS256", "kid": "k1"}
    assert present(provider(), signed(header, claims()))
    refused(provider(), signed(header | more, claims()), "")


@pytest.mark.parametrize(
    "text",
    [
        "a.b.c",
        "..",
        "\ud800.b.c",
        f"{part({'alg': 'RS256'})}.{part([])}.AAAA",
        f"{part([])}.{part({})}.AAAA",
        f"{part({'alg': 'RS256', 'kid': 1})}.{part({'iss': ISS})}.AAAA",
        base64.urlsafe_b64encode(b"[" * 9000).decode().rstrip("=") + ".e30.AAAA",
        "a" * 20000 + ".b.c",
    ],
)
def test_nonsense_is_refused(text):
    refused(provider(), text, "")


def test_a_token_has_so_many_bytes_at_most():
    head = {"alg": "RS256", "kid": "k1"}
    assert present(provider(), signed(head, claims(more="x" * 8000)))
    refused(provider(), signed(head, claims(more="x" * (16 << 10))), "16384 bytes")


@given(st.text(st.characters(codec="ascii", exclude_characters=" "), max_size=60))
def test_no_text_is_a_token_by_chance(text):
    try:
        assert present(provider(), text) is None
    except Unauthenticated:
        assert text.count(".") == 2


@pytest.mark.parametrize("header", [None, "Basic a.b.c", "Bearer agd_x_y", "Bearer a.b.c.d.e"])
def test_what_is_no_token_is_anothers(header):
    credential = Credential(authorization=header)
    assert provider().authenticate(credential) is None


@pytest.mark.parametrize(
    ("changes", "said", "given"),
    [
        ({}, {"scope": "run files admin"}, {"run", "files"}),
        ({}, {"scope": ["run", 1, None, ["files"]]}, {"run"}),
        ({}, {"scope": {"run": 1}}, set()),
        ({}, {}, set()),
        ({"claim": "realm.roles"}, {"realm": {"roles": ["run"]}}, {"run"}),
        ({"claim": "https://x.example/s"}, {"https://x.example/s": "run"}, {"run"}),
        ({"claim": "a.b"}, {"a": "run"}, set()),
        ({"grants": {"dev": frozenset({"run"})}}, {"scope": "dev files"}, {"run"}),
        ({"grants": {"ops": frozenset({"admin", "run"})}}, {"scope": "ops"}, {"run"}),
    ],
)
def test_claims_become_scopes(changes, said, given):
    assert scopes_of(said, issuer(**changes)) == given


@given(
    most=st.sets(st.sampled_from(sorted(SCOPES))),
    said=st.lists(st.sampled_from([*sorted(SCOPES), "dev", "*", ""])),
    grants=st.dictionaries(
        st.sampled_from(["dev", "run", "*"]), st.frozensets(st.sampled_from(sorted(SCOPES)))
    ),
)
def test_no_token_gets_more_than_its_issuer_may_give(most, said, grants):
    got = scopes_of({"scope": said}, issuer(scopes=frozenset(most), grants=grants))
    assert got <= most
    assert got <= (frozenset().union(*grants.values()) if grants else set(said))


@pytest.mark.parametrize(("file", "url"), [(None, None), ("/a", "https://b.example")])
def test_keys_come_from_one_place(file, url):
    with pytest.raises(InvalidInput, match="one place"):
        key_set(file, url)


def test_without_the_package_the_message_names_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jwt", None)
    with pytest.raises(InvalidInput, match="pip install PyJWT cryptography"):
        provider()
