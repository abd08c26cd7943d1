"""Threat: somebody who sends, hears or stores another's signed request uses it for their own ends.

Controls: the signature is over all of the request; each nonce is used once, over restarts of the
daemon too; JSON that two readers could read in two ways is refused; what a signer may is the
daemon's to say, and not the sender's.
"""

import contextlib
import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import Daemon

from agentd.auth.keyfiles import load_private, new_pair
from agentd.auth.signing import sign

LIST = {"capability": "fs.list.v1", "parameters": {"path": "/"}}
RUN = {"capability": "shell.exec.v1", "parameters": {"command": "echo", "args": ["mine"]}}


class Signer:
    """``name``, whom the daemon in ``folder`` trusts once it has looked."""

    def __init__(self, folder: Path, name: str, *, scopes: str = "") -> None:
        own, trusted = folder / "own", folder / "signers"
        own.mkdir(mode=0o700, exist_ok=True)
        trusted.mkdir(mode=0o755, exist_ok=True)
        _, public = new_pair(str(own / f"{name}.pem"))
        (trusted / f"{name}.pem").write_bytes(Path(public).read_bytes())
        if scopes:
            (trusted / f"{name}.toml").write_text(f"scopes = {scopes}\n")
        for file in trusted.iterdir():
            file.chmod(0o644)
        self._key = load_private(str(own / f"{name}.pem"))

    def sign(self, request: dict[str, object]) -> dict[str, Any]:
        return sign(request, self._key)


@contextlib.contextmanager
def trusting() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="agentd-") as name:
        made = Daemon(Path(name), f'[auth.signed]\nsigners = "{name}/signers"\n')
        made.signers = {  # type: ignore[attr-defined]
            "alice": Signer(made.folder, "alice"),
            "bob": Signer(made.folder, "bob"),
            "reader": Signer(made.folder, "reader", scopes='["read"]'),
        }
        try:
            made.start()
            yield made
        finally:
            made.end()


@pytest.fixture(scope="module")
def place() -> Iterator[Daemon]:
    with trusting() as made:
        yield made


@pytest.fixture
def fresh() -> Iterator[Daemon]:
    """One that may be ended, or trust nobody any more."""
    with trusting() as made:
        yield made


@pytest.fixture
def alice(place: Daemon) -> Signer:
    found: Signer = place.signers["alice"]  # type: ignore[attr-defined]
    return found


@pytest.fixture
def relay(place: Daemon) -> str:
    """A key of somebody who passes requests on, and may do little by themselves."""
    return place.key("relay", "read")


def send(daemon: Daemon, request: object, relay: str) -> tuple[int, str]:
    answer = daemon.ask("POST", "/v1/call", request, key=relay)
    return answer.status, answer.code


def test_who_signed_acts_and_not_who_sent_it(place: Daemon, alice: Signer, relay: str) -> None:
    assert send(place, RUN, relay)[1] == "forbidden"
    answer = place.ask("POST", "/v1/call", alice.sign(RUN), key=relay)
    assert answer.json["value"]["stdout"] == "mine\n"
    begun = place.records(kind="start", request=answer.json["request_id"])
    assert [(r.principal, r.fields["signer"][:8]) for r in begun] == [("alice", "ed25519:")]
    # Its receipt is the signer's.
    path = f"/v1/receipts/{answer.json['receipt']}"
    assert place.ask("GET", path, key=relay).status == 404


@pytest.mark.parametrize("path", ["/v1/call", "/v1/call/stream"])
def test_one_that_is_sent_again_does_nothing(
    place: Daemon, alice: Signer, relay: str, path: str
) -> None:
    request, before = alice.sign(RUN), started(place)
    assert b"mine" in place.ask("POST", path, request, key=relay).body
    for again in ("/v1/call", "/v1/call/stream"):
        answer = place.ask("POST", again, request, key=relay)
        assert b"nonce_replayed" in answer.body and b"mine" not in answer.body
    assert started(place) == [*before, "alice"]


def test_nor_after_the_daemon_was_started_again(fresh: Daemon) -> None:
    alice: Signer = fresh.signers["alice"]  # type: ignore[attr-defined]
    relay = fresh.key("relay", "read")
    used, unused = alice.sign(RUN), alice.sign(RUN)
    assert send(fresh, used, relay) == (200, "")
    fresh.stop()
    fresh.start()
    assert send(fresh, used, relay) == (401, "nonce_replayed")
    fresh.stop(kill=True)
    fresh.start()
    assert send(fresh, used, relay) == (401, "nonce_replayed")
    # A crash forgets nothing that was acknowledged; and what was not used still holds.
    assert send(fresh, unused, relay) == (200, "")


def started(daemon: Daemon) -> list[str]:
    """By whom something was begun, but for what this asks to have it all on disk."""
    assert daemon.call("fs.list.v1", {"path": "/"}).status == 200
    found = [record.principal for record in daemon.records(kind="start")]
    return [name for name in found if not name.startswith("uid:")]


def changes(request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    def changed(**members: object) -> dict[str, object]:
        return {**copy.deepcopy(request), **members}

    signature = dict(request["signature"])
    return {
        "another command": changed(parameters={"command": "echo", "args": ["yours"]}),
        "one more parameter": changed(parameters={"command": "echo", "args": ["mine"], "cwd": "/"}),
        "another capability": changed(capability="python.exec.v1", parameters={"code": "1"}),
        "another sandbox": changed(create={"isolation": "microvm"}),
        "a policy that is expected": changed(bundle="sha256:" + "0" * 64),
        "another nonce": changed(signature={**signature, "nonce": "A" * 22}),
        "another time": changed(signature={**signature, "issued": signature["issued"] + 1}),
        "a longer life": changed(signature={**signature, "expires": 9e9}),
        "no value": changed(signature={**signature, "value": "A" * 86}),
        "another algorithm": changed(signature={**signature, "alg": "none"}),
        "a member that nobody knows": changed(signature={**signature, "x": 1}),
        "nothing in it": changed(signature={}),
        "no object": changed(signature="trust me"),
    }


def test_nothing_of_it_can_be_changed(place: Daemon, alice: Signer, relay: str) -> None:
    request, before = alice.sign(RUN), started(place)
    for what, changed in changes(request).items():
        status, code = send(place, changed, relay)
        assert status in (400, 401) and code in ("signature_invalid", "invalid_input"), what
    assert started(place) == before
    assert send(place, request, relay) == (200, "")  # none of that has used it up


def test_to_take_the_signature_off_is_to_ask_as_oneself(
    place: Daemon, alice: Signer, relay: str
) -> None:
    request = alice.sign(RUN)
    bare = {name: value for name, value in request.items() if name != "signature"}
    assert send(place, bare, relay) == (403, "forbidden")
    assert send(place, {**bare, "signature": None}, relay)[0] == 401


def test_one_request_s_signature_fits_no_other(place: Daemon, alice: Signer, relay: str) -> None:
    bob = place.signers["bob"]  # type: ignore[attr-defined]
    one, other, bobs = alice.sign(RUN), alice.sign(LIST), bob.sign(RUN)
    before = started(place)
    for request, theirs in ((one, other), (other, one), (one, bobs), (bobs, one)):
        if {k: v for k, v in request.items() if k != "signature"} == {
            k: v for k, v in theirs.items() if k != "signature"
        }:
            # Of the same request: then it says who, and cannot be made to say another.
            mixed = {**request["signature"], "key": theirs["signature"]["key"]}
        else:
            mixed = theirs["signature"]
        assert send(place, {**request, "signature": mixed}, relay) == (401, "signature_invalid")
    assert started(place) == before


@pytest.mark.parametrize(
    "twice",
    [
        ('"capability"', '"capability":"fs.list.v1",'),
        ('"command"', '"command":"id",'),
        ('"signature"', '"signature":null,'),
        ('"nonce"', '"nonce":"AAAAAAAAAAAAAAAAAAAAAA",'),
    ],
)
def test_a_member_that_is_there_twice_is_no_request(
    place: Daemon, alice: Signer, relay: str, twice: tuple[str, str]
) -> None:
    """One reader takes the first, another the last: signed is one, and done would be the other."""
    member, first = twice
    before = started(place)
    text = json.dumps(alice.sign(RUN)).replace(member, first + member, 1)
    assert send(place, text.encode(), relay) == (400, "invalid_input")
    behind = json.dumps(alice.sign(RUN))[:-1] + ',"parameters":{"command":"id"}}'
    assert send(place, behind.encode(), relay) == (400, "invalid_input")
    assert started(place) == before


def test_what_a_signer_may_is_not_the_sender_s_to_say(place: Daemon, relay: str) -> None:
    reader = place.signers["reader"]  # type: ignore[attr-defined]
    admin = place.key("boss", "admin")
    assert send(place, reader.sign(RUN), admin) == (403, "forbidden")


def test_one_that_is_trusted_no_longer_is_nobody(fresh: Daemon) -> None:
    alice: Signer = fresh.signers["alice"]  # type: ignore[attr-defined]
    request = alice.sign(RUN)
    (fresh.folder / "signers/alice.pem").unlink()
    assert send(fresh, request, fresh.key("relay", "read")) == (401, "signer_unknown")


def test_a_replay_under_the_same_idempotency_key_does_nothing_anew(
    place: Daemon, alice: Signer, relay: str
) -> None:
    """The answer that its sender has had already is all that there is."""
    request, before = alice.sign(RUN), started(place)
    first = place.ask("POST", "/v1/call", request, key=relay, Idempotency_Key="k")
    again = place.ask("POST", "/v1/call", request, key=relay, Idempotency_Key="k")
    assert first.body == again.body and again.headers["idempotency-replayed"] == "true"
    other = place.key("other", "read")
    answer = place.ask("POST", "/v1/call", request, key=other, Idempotency_Key="k")
    assert answer.code == "nonce_replayed"
    assert started(place) == [*before, "alice"]
