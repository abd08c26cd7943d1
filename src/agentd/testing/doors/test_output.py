"""What commands write: whole, in order, no byte lost; a cursor goes on at exactly its byte."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from agentd.testing.doors.daemon import Daemon, Place
from agentd.testing.doors.driver import Driver
from agentd.testing.same import same

_LINES = 30_000  # more than a pipe holds
_LONG = b"".join(b"%d\n" % number for number in range(1, _LINES + 1))
_TEXT = "\ufeffe\u0301 \r\n\r\r\n \n\n".encode()  # what a reader of text makes something else of
_WROTE = len(Place.WROTE)


@pytest.fixture
def key(daemon: Daemon, alice: Place) -> str:
    return daemon.key(alice.principal)


@pytest.mark.claims("run")
def test_output_is_whole_and_in_order(door: Driver, alice: Place, key: str) -> None:
    ended = door.run(key, alice.sandbox, ["seq", str(_LINES)])
    same(ended.stdout, _LONG)


@pytest.mark.claims("run")
def test_every_byte_is_told_as_it_is(door: Driver, alice: Place, key: str) -> None:
    """Also what is no text, and ends without a newline; and of text the ends of its lines."""
    for written in (bytes(range(256)), _TEXT):
        octal = "".join(f"\\{byte:03o}" for byte in written)
        assert door.run(key, alice.sandbox, ["printf", octal]).stdout == written


@pytest.mark.claims("run")
def test_what_is_written_right_before_the_end_is_there(
    door: Driver, alice: Place, key: str
) -> None:
    for number in range(5):
        ended = door.run(key, alice.sandbox, ["printf", f"the end {number}"])
        assert ended.stdout == b"the end %d" % number


@pytest.mark.claims("run", "stderr")
def test_stderr_is_apart(door: Driver, alice: Place, key: str) -> None:
    ended = door.run(key, alice.sandbox, ["sh", "-c", "printf out; printf err >&2"])
    assert ended.stderr == b"err"


@pytest.mark.claims("output")
@pytest.mark.parametrize("cursor", [0, 1, _WROTE // 2, _WROTE - 1, _WROTE])
def test_a_cursor_goes_on_at_exactly_its_byte(
    door: Driver, alice: Place, key: str, cursor: int
) -> None:
    found = door.output(key, alice.sandbox, alice.wrote(), "stdout", cursor)
    assert found == Place.WROTE[cursor:]


@pytest.mark.claims("output")
def test_output_is_followed_to_its_end(
    door: Driver, daemon: Daemon, alice: Place, key: str
) -> None:
    process = alice.start("cat", stdin_open=True)
    stdin = f"/v1/sandboxes/{alice.sandbox}/processes/{process}/stdin"
    with ThreadPoolExecutor(1) as threads:
        following = threads.submit(door.output, key, alice.sandbox, process, "stdout", 0)
        for size in (6, 12, 18):
            daemon.json("POST", stdin, b"piece\n")
            daemon.until(partial(_has_written, alice, process, size), "what cat writes")
        daemon.json("POST", f"{stdin}?eof=true", b"the end")
        assert following.result(daemon.patience) == b"piece\n" * 3 + b"the end"


def _has_written(place: Place, process: str, size: int) -> bool:
    written: int = place.process(process)["output"].get("stdout", 0)
    return written == size
