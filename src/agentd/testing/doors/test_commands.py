"""How commands end, with the cause; and what they read."""

import pytest

from agentd.testing.doors.daemon import Daemon, Place
from agentd.testing.doors.driver import Driver, Ended
from agentd.testing.same import same

_PIECE = bytes(range(256))
_SIZES = [0, 1, 300_000]  # the last is more than a pipe holds


@pytest.fixture
def key(daemon: Daemon, alice: Place) -> str:
    return daemon.key(alice.principal)


@pytest.mark.claims("run", "exit")
@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_an_exit_code_is_told(door: Driver, alice: Place, key: str, code: int) -> None:
    ended = door.run(key, alice.sandbox, ["sh", "-c", f"exit {code}"])
    assert (ended.exit_code, ended.signal, ended.cause) == (code, None, "exited")


@pytest.mark.claims("run", "exit")
def test_a_signal_is_told(door: Driver, alice: Place, key: str) -> None:
    ended = door.run(key, alice.sandbox, ["sh", "-c", "kill -KILL $$"])
    assert (ended.exit_code, ended.signal, ended.cause) == (None, 9, "signalled")


@pytest.mark.claims("run", "exit")
def test_a_program_that_is_not_there_is_told(door: Driver, alice: Place, key: str) -> None:
    ended = door.run(key, alice.sandbox, ["no-such-program"])
    assert ended.cause == "spawn_failed" and ended.remediation


@pytest.mark.claims("run", "exit", "timeout")
def test_a_timeout_is_told_as_one(door: Driver, alice: Place, key: str) -> None:
    ended = door.run(key, alice.sandbox, ["sleep", "600"], timeout=0.2)
    assert ended.cause == "timeout" and ended.remediation
    assert ended.exit_code is None


@pytest.mark.claims("start", "result")
def test_the_end_of_one_that_was_started_is_told(
    door: Driver, daemon: Daemon, alice: Place, key: str
) -> None:
    process = door.start(key, alice.sandbox, ["sh", "-c", "exit 42"])
    ended = until_ended(door, daemon, alice, key, process)
    assert (ended.exit_code, ended.cause) == (42, "exited")


@pytest.mark.claims("start", "result", "signal")
def test_a_signal_arrives(door: Driver, daemon: Daemon, alice: Place, key: str) -> None:
    process = door.start(key, alice.sandbox, ["cat"])
    assert door.result(key, alice.sandbox, process) is None, "it runs"
    door.signal(key, alice.sandbox, process, 10)
    ended = until_ended(door, daemon, alice, key, process)
    assert (ended.exit_code, ended.signal, ended.cause) == (None, 10, "signalled")


@pytest.mark.claims("run")
@pytest.mark.parametrize("size", _SIZES)
def test_stdin_arrives_whole(
    door: Driver, daemon: Daemon, alice: Place, key: str, size: int
) -> None:
    sent = (_PIECE * (size // 256 + 1))[:size]
    door.run(key, alice.sandbox, ["sh", "-c", "cat > got"], stdin=sent)
    same(daemon.file(alice.sandbox, alice.path("got")), sent)


@pytest.mark.claims("start", "write")
def test_stdin_in_pieces_arrives_in_order(
    door: Driver, daemon: Daemon, alice: Place, key: str
) -> None:
    process = door.start(key, alice.sandbox, ["sh", "-c", "cat > pieces"])
    for number in range(5):
        door.write(key, alice.sandbox, process, _PIECE * number, eof=False)
    door.write(key, alice.sandbox, process, b"the end", eof=True)
    daemon.until(lambda: alice.process(process)["state"] == "ended", "the end of its stdin")
    sent = b"".join(_PIECE * number for number in range(5)) + b"the end"
    assert daemon.file(alice.sandbox, alice.path("pieces")) == sent


def until_ended(door: Driver, daemon: Daemon, place: Place, key: str, process: str) -> Ended:
    found: list[Ended] = []

    def has_ended() -> bool:
        ended = door.result(key, place.sandbox, process)
        found.extend([ended] if ended is not None else [])
        return bool(found)

    daemon.until(has_ended, "the end of a command")
    return found[0]
