"""An Idempotency-Key has one meaning: what has one is done once, and told again to who asked."""

import os
from collections.abc import Callable
from typing import NamedTuple

import pytest

from agentd.testing.doors.daemon import Daemon, Place
from agentd.testing.doors.driver import Driver, Refusal

Do = Callable[[Driver, str, Place, str, str], object]


def _run(door: Driver, key: str, place: Place, name: str, once: str) -> object:
    return door.run(key, place.sandbox, ["sh", "-c", f"echo done >> {name}"], once=once)


def _call(door: Driver, key: str, place: Place, name: str, once: str) -> object:
    parameters = {"command": "sh", "args": ["-c", f"echo done >> {name}"]}
    return door.call(key, "shell.exec.v1", parameters, place.sandbox, once=once)


def _write(door: Driver, key: str, place: Place, name: str, once: str) -> object:
    door.write_file(key, place.sandbox, place.path(name), b"done\n", once=once)
    return None


class Way(NamedTuple):
    do: Do
    scope: str


WAYS = {"run": Way(_run, "run"), "call": Way(_call, "run"), "write_file": Way(_write, "files")}
ways = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(autouse=True)
def _claimed(request: pytest.FixtureRequest, door: Driver) -> None:
    way = request.node.callspec.params.get("way", "create")
    if f"once in {way}" not in door.claims:
        pytest.skip(f"the door {door.door} does not claim: once in {way}")


@pytest.fixture
def once() -> str:
    return f"once-{os.urandom(8).hex()}"


@ways
def test_it_is_done_once_and_told_again(
    door: Driver, daemon: Daemon, alice: Place, once: str, way: str
) -> None:
    key, name, do = daemon.key(alice.principal), once, WAYS[way].do
    first = do(door, key, alice, name, once)
    assert daemon.file(alice.sandbox, alice.path(name)) == b"done\n"
    daemon.put(alice.sandbox, name, b"changed\n")
    assert do(door, key, alice, name, once) == first
    assert daemon.file(alice.sandbox, alice.path(name)) == b"changed\n"


@ways
def test_the_same_key_with_another_request_is_refused(
    door: Driver, daemon: Daemon, alice: Place, once: str, way: str
) -> None:
    key, do = daemon.key(alice.principal), WAYS[way].do
    do(door, key, alice, once, once)
    with pytest.raises(Refusal) as caught:
        do(door, key, alice, f"{once}-other", once)
    assert caught.value.code == "idempotency_mismatch"
    assert daemon.file(alice.sandbox, alice.path(f"{once}-other")) is None


@ways
def test_a_repeat_is_authorised_again(
    door: Driver, daemon: Daemon, alice: Place, once: str, way: str
) -> None:
    do, scope = WAYS[way]
    do(door, daemon.key(alice.principal), alice, once, once)
    with pytest.raises(Refusal) as caught:
        do(door, daemon.key(alice.principal, "read"), alice, once, once)
    assert caught.value.code == "forbidden" and repr(scope) in caught.value.message


@ways
def test_anothers_key_is_anothers(
    door: Driver, daemon: Daemon, alice: Place, once: str, way: str
) -> None:
    """Bob, who uses the key that alice used, is not given what alice was told."""
    do = WAYS[way].do
    do(door, daemon.key(alice.principal), alice, once, once)
    with pytest.raises(Refusal) as caught:
        do(door, daemon.key("bob"), alice, once, once)
    assert caught.value.code == "not_found"


def test_one_sandbox_is_made(door: Driver, daemon: Daemon, once: str) -> None:
    key = daemon.key("alice")
    first = door.create(key, once=once)
    assert door.create(key, once=once) == first
    daemon.json("DELETE", f"/v1/sandboxes/{first}")
