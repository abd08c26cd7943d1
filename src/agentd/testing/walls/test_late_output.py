"""What a command leaves behind, and what that writes once the command has ended."""

import time
from collections.abc import Callable

import pytest

from agentd import CauseCode, Sandbox
from agentd.testing.patience import SLOWER

pytestmark = pytest.mark.shares_machine

# It goes on once its parent is gone, not merely dead: the agent knows of the end by then.
LATE = "(while kill -0 $$ 2>/dev/null; do :; done; {}) & echo early"
FLOOD = "(while printf %1000d 1; do :; done) & echo hi"
# It has a tenth of a second for that. A machine that is busy may take it, but not each time.
SECONDS = 120.0

End = tuple[int | None, CauseCode, bool, bytes]


def run(sandbox: Sandbox, command: str) -> End:
    result = sandbox.run(command)
    return result.exit_code, result.cause.code, result.truncated, result.stdout


def stream(sandbox: Sandbox, command: str) -> End:
    with sandbox.stream(command) as process:
        output = b"".join(chunk.data for chunk in process if chunk.stream == "stdout")
    result = process.result
    return result.exit_code, result.cause.code, result.truncated, output


@pytest.fixture(params=[run, stream])
def way(request: pytest.FixtureRequest) -> Callable[[Sandbox, str], End]:
    found: Callable[[Sandbox, str], End] = request.param
    return found


@pytest.mark.parametrize("write", ["echo late", "sleep 0.03; echo late"])
def test_what_is_left_behind_may_still_write(
    sandbox: Sandbox, way: Callable[[Sandbox, str], End], write: str
) -> None:
    deadline = time.monotonic() + SECONDS
    while (found := way(sandbox, LATE.format(write)))[3] != b"early\nlate\n":
        # What is written just as it is cut is told as missing.
        assert (*found[:2], found[3]) == (0, CauseCode.EXITED, b"early\n")
        if time.monotonic() > deadline:
            assert SLOWER > 1, "nothing late came"
            pytest.skip("a tenth of a second is too short for anything on an emulated machine")


def test_a_silent_server_holds_up_nobody_and_is_not_cut(
    sandbox: Sandbox, way: Callable[[Sandbox, str], End]
) -> None:
    assert way(sandbox, "sleep 1000 & echo hi") == (0, CauseCode.EXITED, False, b"hi\n")


def test_who_writes_for_ever_is_cut_and_that_is_told(
    sandbox: Sandbox, way: Callable[[Sandbox, str], End]
) -> None:
    # One that a busy machine gives no processor at the last is a silent holder, whatever it has
    # written before; and its parent may have none until the limit's bytes are written.
    others = ((0, CauseCode.EXITED, False), (None, CauseCode.OUTPUT_LIMIT, True))
    deadline = time.monotonic() + SECONDS
    while (found := way(sandbox, FLOOD))[:3] in others:
        assert found[0] is None or b"hi\n" in found[3]
        assert time.monotonic() < deadline, "it was never told of"
    code, cause, truncated, output = found
    assert (code, truncated) == (0, True)
    # A fast machine has written the limit's bytes by then.
    assert cause in (CauseCode.EXITED, CauseCode.OUTPUT_LIMIT)
    assert b"hi\n" in output


def test_a_command_that_is_ended_takes_what_it_left_with_it(sandbox: Sandbox) -> None:
    script, deadline = "sleep 1000 & echo hi; sleep 1000", time.monotonic() + SECONDS
    # A busy machine may take all of that before it has said anything, but not each time.
    while not (found := sandbox.run(script, timeout=0.5 * SLOWER)).stdout:
        assert found.cause.code is CauseCode.TIMEOUT
        assert time.monotonic() < deadline, "none of them began in time"
    assert (found.cause.code, found.truncated, found.stdout) == (CauseCode.TIMEOUT, False, b"hi\n")


def test_late_output_counts_toward_the_limit(make: Callable[..., Sandbox]) -> None:
    sandbox, deadline = make(output="4K"), time.monotonic() + SECONDS
    while (found := sandbox.run(FLOOD)).cause.code is not CauseCode.OUTPUT_LIMIT:
        assert found.cause.code is CauseCode.EXITED
        assert time.monotonic() < deadline, "so much never came in time"
    assert found.truncated
    assert len(found.stdout) == 4096
