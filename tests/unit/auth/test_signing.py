import copy
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from agentd.auth.keyfiles import key_id
from agentd.auth.signing import (
    DOMAIN,
    NonceReplayed,
    RequestFromFuture,
    RequestStale,
    SignatureInvalid,
    SignatureMissing,
    Signer,
    SignerUnknown,
    WrongAudience,
    sign,
    signed_bytes,
    verify,
)
from agentd.model.canonical import canonical, loads_strict
from agentd.model.errors import InvalidInput, Unauthenticated

NOW = 1_764_000_000.0
KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
ASKED = {"capability": "shell.exec.v1", "parameters": {"command": ["rm", "-r", "x"], "n": 1.5}}


class Known:
    def __init__(self, *signers):
        self._signers = {signer.key_id: signer for signer in signers}

    def find(self, key):
        return self._signers.get(key)


class Seen(set):
    """Takes down what it is asked about; what a real one does is tested with the store."""

    def first_use(self, key, nonce, issued):
        new = (key, nonce, issued) not in self
        self.add((key, nonce, issued))
        return new


def signer(key=KEY, name="alice", **more):
    public = key.public_key()
    return Signer(
        name=name,
        key_id=key_id(public),
        key=public,
        principal=name,
        scopes=frozenset({"run"}),
        **more,
    )


ALICE = Known(signer())


def check(request, trusted=ALICE, now=NOW, **options):
    return verify(request, trusted, Seen(), now, **options)


def signature(**changes):
    """A whole request, as signed by KEY, whatever the signature says of itself."""
    said = {
        "key": key_id(KEY.public_key()),
        "nonce": "A" * 22,
        "issued": NOW,
        "alg": "ed25519",
        **changes,
    }
    said = {name: value for name, value in said.items() if value is not ...}
    request = {**ASKED, "signature": said}
    value = urlsafe_b64encode(KEY.sign(DOMAIN + canonical(request))).decode().rstrip("=")
    return {**ASKED, "signature": {**said, "value": value}}


def test_who_signed_is_told_and_the_request_stays_as_it_is():
    request = sign(ASKED, KEY, now=NOW)
    before = copy.deepcopy(request)
    who = check(request)
    assert who.name == "alice"
    assert who.acts_as().credential == key_id(KEY.public_key())
    assert request == before and "signature" not in ASKED
    assert {name: value for name, value in request.items() if name != "signature"} == ASKED


def test_what_is_signed_is_the_domain_and_the_canonical_rest():
    request = sign({"b": 1, "a": [2.0]}, KEY, now=NOW)
    said = request["signature"]
    text = (
        "agentd-request-v1\n"
        '{"a":[2],"b":1,"signature":{"alg":"ed25519","issued":1764000000,'
        f'"key":"{said["key"]}","nonce":"{said["nonce"]}"}}}}'
    )
    assert signed_bytes(request) == text.encode()
    KEY.public_key().verify(urlsafe_b64decode(said["value"] + "=="), text.encode())


def test_it_holds_however_the_json_was_written_on_the_way():
    request = sign(ASKED, KEY, now=NOW)
    text = json.dumps(dict(reversed(request.items())), indent=3, ensure_ascii=True)
    assert check(loads_strict(text.encode()))


def test_no_two_signatures_have_the_same_nonce():
    nonces = {sign(ASKED, KEY)["signature"]["nonce"] for _ in range(100)}
    assert len(nonces) == 100
    assert all(len(urlsafe_b64decode(nonce + "==")) == 16 for nonce in nonces)


def test_what_is_signed_already_is_not_signed_again():
    with pytest.raises(InvalidInput, match="has a signature already"):
        sign(sign(ASKED, KEY), KEY)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
REQUESTS = st.dictionaries(st.text(max_size=8).filter(lambda k: k != "signature"), JSON, max_size=6)


@given(REQUESTS)
def test_any_request_can_be_signed(request):
    assert check(loads_strict(canonical(sign(request, KEY, now=NOW)))).name == "alice"


def _paths(node, path=()):
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from _paths(value, (*path, key))
        else:
            yield (*path, key)


@given(REQUESTS, st.data())
def test_no_part_of_it_can_be_changed(request, data):
    changed = copy.deepcopy(sign(request, KEY, now=NOW))
    path = data.draw(st.sampled_from(list(_paths(changed))))
    parent = changed
    for step in path[:-1]:
        parent = parent[step]
    if not path:
        changed["more"] = 1 if changed.get("more") != 1 else 2
    elif data.draw(st.booleans()) and isinstance(parent, dict):
        del parent[path[-1]]
    else:
        old = parent[path[-1]]
        parent[path[-1]] = data.draw(JSON.filter(lambda new: canonical(new) != canonical(old)))
    with pytest.raises(Unauthenticated):
        check(changed)


@given(st.integers(0, 511))
def test_no_bit_of_the_value_can_be_changed(bit):
    request = sign(ASKED, KEY, now=NOW)
    raw = bytearray(urlsafe_b64decode(request["signature"]["value"] + "=="))
    raw[bit // 8] ^= 1 << bit % 8
    request["signature"]["value"] = urlsafe_b64encode(raw).decode().rstrip("=")
    with pytest.raises(SignatureInvalid):
        check(request)


def test_without_a_signature_nobody_asks():
    with pytest.raises(SignatureMissing) as caught:
        check(ASKED)
    assert caught.value.code == "signature_missing"


def test_a_key_that_is_not_trusted_is_nobody():
    with pytest.raises(SignerUnknown, match="not trusted here") as caught:
        check(sign(ASKED, OTHER, now=NOW))
    assert caught.value.code == "signer_unknown"
    with pytest.raises(SignerUnknown, match="has ended"):
        check(sign(ASKED, KEY, now=NOW), Known(signer(expires=NOW)))
    assert check(sign(ASKED, KEY, now=NOW), Known(signer(expires=NOW + 1)))


def test_nobody_signs_in_anothers_name():
    """The request names alice's key, and mallory, who is trusted too, signs it."""
    forged = sign(ASKED, OTHER, now=NOW)
    forged["signature"]["key"] = key_id(KEY.public_key())
    both = Known(signer(), signer(OTHER, "mallory"))
    with pytest.raises(SignatureInvalid) as caught:
        check(forged, both)
    assert caught.value.code == "signature_invalid"


def test_what_the_key_signed_for_another_purpose_is_no_request():
    request = signature()
    bare = canonical({**ASKED, "signature": {k: v for k, v in request["signature"].items()
                                             if k != "value"}})  # fmt: skip
    for signed in (bare, b"agentd-receipt-v1\n" + bare, DOMAIN[:-1] + bare):
        value = urlsafe_b64encode(KEY.sign(signed)).decode().rstrip("=")
        other = {**ASKED, "signature": {**request["signature"], "value": value}}
        with pytest.raises(SignatureInvalid):
            check(other)
    assert check(request)


@pytest.mark.parametrize(
    "changes",
    [
        {"alg": "none"},
        {"alg": "Ed25519"},
        {"alg": "hs256"},
        {"alg": ...},
        {"nonce": ...},
        {"nonce": "A" * 21},
        {"nonce": "A" * 87},
        {"nonce": "A" * 22 + "=="},
        {"nonce": "A" * 21 + "\n"},
        {"nonce": 5},
        {"issued": ...},
        {"issued": "2026-01-01T00:00:00Z"},
        {"issued": True},
        {"issued": None},
        {"expires": "never"},
        {"key": ...},
        {"key": None},
        {"jwk": {"kty": "OKP"}},
        {"audience": 1},
    ],
)
def test_a_signature_that_is_not_of_this_form_is_refused_though_it_holds(changes):
    with pytest.raises(SignatureInvalid):
        check(signature(**changes))


@pytest.mark.parametrize("value", [None, 1, "text", [], [["key", "x"]], {}])
def test_what_is_no_signature_is_refused(value):
    with pytest.raises(SignatureInvalid):
        check({**ASKED, "signature": value})


@pytest.mark.parametrize("value", ["", "A" * 85, "A" * 88, "A" * 86 + "==", "+" * 86, "é" * 86, 1])
def test_a_value_has_one_form(value):
    request = signature()
    request["signature"]["value"] = value
    with pytest.raises(SignatureInvalid):
        check(request)


def test_a_request_holds_for_a_while():
    request = sign(ASKED, KEY, now=NOW)
    assert check(request, now=NOW + 300)
    with pytest.raises(RequestStale, match="was signed 301 s ago: at most 300 s") as caught:
        check(request, now=NOW + 301)
    assert caught.value.code == "request_stale"
    assert check(request, now=NOW + 9, max_age=10)
    with pytest.raises(RequestStale):
        check(request, now=NOW + 11, max_age=10)


def test_who_signs_may_end_it_earlier_and_not_later():
    brief = sign(ASKED, KEY, ttl=5, now=NOW)
    assert check(brief, now=NOW + 4)
    with pytest.raises(RequestStale, match="it has expired"):
        check(brief, now=NOW + 5)
    with pytest.raises(RequestStale):
        check(sign(ASKED, KEY, ttl=86400, now=NOW), now=NOW + 301)


def test_clocks_may_differ_a_little():
    request = sign(ASKED, KEY, now=NOW)
    assert check(request, now=NOW - 30)
    with pytest.raises(RequestFromFuture, match="31 s ahead") as caught:
        check(request, now=NOW - 31)
    assert caught.value.code == "request_from_future"
    with pytest.raises(RequestFromFuture):
        check(request, now=NOW - 2, skew=1)


def test_a_request_is_used_once():
    request, seen = sign(ASKED, KEY, now=NOW), Seen()
    assert verify(request, ALICE, seen, NOW)
    with pytest.raises(NonceReplayed) as caught:
        verify(request, ALICE, seen, NOW + 1)
    assert caught.value.code == "nonce_replayed"
    assert verify(sign(ASKED, KEY, now=NOW), ALICE, seen, NOW)


def test_only_what_holds_uses_up_a_nonce():
    """Else whoever saw a nonce could use it up before its owner does."""
    request, seen = sign(ASKED, KEY, now=NOW), Seen()
    for wrong, now in [({**request, "x": 1}, NOW), (request, NOW + 999), (request, NOW - 999)]:
        with pytest.raises(Unauthenticated):
            verify(wrong, ALICE, seen, now)
    assert not seen
    assert verify(request, ALICE, seen, NOW)


def test_a_request_for_one_daemon_is_none_for_another():
    mine = sign(ASKED, KEY, audience="build-1", now=NOW)
    assert check(mine, audience="build-1")
    for request, audience in [(mine, "build-2"), (mine, None), (signature(), "build-1")]:
        with pytest.raises(WrongAudience) as caught:
            check(request, audience=audience)
    assert caught.value.code == "wrong_audience"


def test_what_json_cannot_say_is_invalid():
    with pytest.raises(InvalidInput):
        sign({"a": float("nan")}, KEY)
    with pytest.raises(InvalidInput, match="beyond"):
        check({**sign(ASKED, KEY, now=NOW), "n": 1 << 60})
