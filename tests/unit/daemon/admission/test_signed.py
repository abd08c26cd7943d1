"""From the configuration to who acts, with the real directory and the real store."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agentd.auth.keyfiles import load_private, new_pair
from agentd.auth.signing import (
    NonceReplayed,
    RequestFromFuture,
    RequestStale,
    SignatureInvalid,
    SignatureMissing,
    SignerUnknown,
    WrongAudience,
    sign,
)
from agentd.daemon.admission.signed import SignedRequests
from agentd.daemon.config.schema import Signed
from agentd.daemon.config.values import Duration, FilePath, Name
from agentd.daemon.service.nonces import StoredNonces
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model.principal import Principal

NOW = 1_764_000_000.0
RELAY = Principal("relay", frozenset({"run"}), "key", "k1")
ASKED = {"capability": "shell.exec.v1", "parameters": {"command": "make"}}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "signers").mkdir(mode=0o755)
    (tmp_path / "own").mkdir(mode=0o700)
    return tmp_path


@pytest.fixture
def alice(place):
    _, public = new_pair(str(place / "own/alice.pem"))
    target = place / "signers/alice.pem"
    with open(public, "rb") as file:
        target.write_bytes(file.read())
    target.chmod(0o644)
    return load_private(str(place / "own/alice.pem"))


@pytest.fixture
def replay(place):
    store = SqliteStore(str(place / "state"))
    yield StoredNonces(store, NOW - 1)
    store.close()


def requests(place, replay, **settings):
    config = Signed(signers=FilePath(str(place / "signers")), **settings)
    return SignedRequests(config, replay, lambda: NOW)


def test_who_signed_acts_whoever_sent_it(place, replay, alice):
    signed = requests(place, replay)
    request = sign(ASKED, alice, now=NOW)
    who = signed.acting(RELAY, request)
    assert (who.name, who.via) == ("alice", "signed")
    assert who.credential == request["signature"]["key"]
    assert "keys" not in who.scopes and "run" in who.scopes
    with pytest.raises(NonceReplayed):
        signed.acting(RELAY, request)


def test_what_is_not_signed_is_the_senders_unless_all_must_be(place, replay, alice):
    assert requests(place, replay).acting(RELAY, ASKED) is RELAY
    strict = requests(place, replay, required=True)
    with pytest.raises(SignatureMissing):
        strict.acting(RELAY, ASKED)
    assert strict.acting(RELAY, sign(ASKED, alice, now=NOW)).name == "alice"


def test_a_signature_that_does_not_hold_is_not_passed_over(place, replay, alice):
    """It would be done as the sender instead."""
    signed = requests(place, replay)
    with pytest.raises(SignatureInvalid):
        signed.acting(RELAY, {**sign(ASKED, alice, now=NOW), "more": 1})
    with pytest.raises(SignerUnknown):
        signed.acting(RELAY, sign(ASKED, Ed25519PrivateKey.generate(), now=NOW))
    nobody = SignedRequests(Signed(), replay, lambda: NOW)
    with pytest.raises(SignerUnknown, match="trusts no signers"):
        nobody.acting(RELAY, sign(ASKED, alice, now=NOW))


def test_the_bounds_are_the_configurations(place, replay, alice):
    signed = requests(
        place, replay, max_age=Duration(10), skew=Duration(2), audience=Name("build-1")
    )
    assert signed.acting(RELAY, sign(ASKED, alice, audience="build-1", now=NOW))
    for error, now, audience in [
        (RequestStale, NOW - 11, "build-1"),
        (RequestFromFuture, NOW + 3, "build-1"),
        (WrongAudience, NOW, "build-2"),
        (WrongAudience, NOW, None),
    ]:
        with pytest.raises(error):
            signed.acting(RELAY, sign(ASKED, alice, audience=audience, now=now))


def test_a_signer_that_is_taken_out_is_out(place, replay, alice):
    signed = requests(place, replay)
    assert signed.problems == ()
    assert signed.acting(RELAY, sign(ASKED, alice, now=NOW))
    (place / "signers/alice.pem").unlink()
    with pytest.raises(SignerUnknown):
        signed.acting(RELAY, sign(ASKED, alice, now=NOW))
