"""A machine that was taken over answers with anything but the protocol, and calls the host.

The controls: bounds, credit and deadlines of the host's end (agentd.transport), and the limits of
the vsock device. Each mischief is a port of the machine; tests/vm/hostile.py says what it does.
What needs no machine is in tests/unit/transport/test_hostile.py.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.vm import boot, hostile
from tests.vm.boot import Machine
from tests.vm.debian import Unavailable

from agentd.model.errors import BackendLost, GuestError
from agentd.model.result import CauseCode
from agentd.model.spec import ExecRequest
from agentd.transport.guest import Guest

MIB = 1 << 20
TRUE = ExecRequest(("true",))
MOST_MEMORY = 64 * MIB
pytestmark = pytest.mark.timeout(1800)  # what is emulated takes its time beside others


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    try:
        image = boot.image()
    except Unavailable as missing:
        pytest.skip(str(missing))
    overlay = boot.instead_of_the_agent(Path(hostile.__file__))
    with boot.booted(image, overlay=overlay, words="rdinit=/other", ports=()) as machine:
        machine.open(port(hostile.death_in_a_frame)).close()
        yield machine


def port(mischief: Callable[[socket.socket], None]) -> int:
    return hostile.FIRST + hostile.MISCHIEF.index(mischief)


@pytest.fixture
def guest(machine: Machine) -> Iterator[Callable[..., Guest]]:
    """``guest(mischief, answer_timeout=...)``: its client. What it costs the host is checked."""
    made: list[Guest] = []

    def connect(mischief: Callable[[socket.socket], None], **timeouts: float) -> Guest:
        made.append(
            Guest(lambda: machine.open(port(mischief)), passes_descriptors=False, **timeouts)
        )
        return made[-1]

    before = resident(os.getpid()), resident(machine.device.pid)
    yield connect
    for client in made:
        client.close()
    after = resident(os.getpid()), resident(machine.device.pid)
    assert after[0] - before[0] < MOST_MEMORY
    assert after[1] - before[1] < MOST_MEMORY
    assert machine.device.poll() is None or machine.process.poll() is not None


def resident(pid: int) -> int:
    """Bytes; 0 of a process that has ended."""
    try:
        words = Path(f"/proc/{pid}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("mischief", [hostile.garbage, hostile.line_without_end])
def test_a_greeting_that_is_none_is_a_guest_error(
    guest: Callable[..., Guest], mischief: Callable[[socket.socket], None]
) -> None:
    with pytest.raises(GuestError) as caught:
        guest(mischief).run(TRUE)
    assert "greeting" in str(caught.value)


def test_a_flood_of_output_is_cut_off(guest: Callable[..., Guest]) -> None:
    """By the limit, or by the end of its credit: whichever the flood comes to first."""
    try:
        end, out, _, truncated = guest(hostile.flood_of_output).run(
            ExecRequest(("true",), output_limit=MIB)
        )
    except GuestError:
        return
    assert (end.cause.code, len(out), truncated) == (CauseCode.OUTPUT_LIMIT, MIB, True)


def test_a_flood_of_nothing_ends_with_the_commands_time(guest: Callable[..., Guest]) -> None:
    end = guest(hostile.flood_of_empty_frames).run(ExecRequest(("true",), timeout=2.0))[0]
    assert end.cause.code is CauseCode.TIMEOUT


def test_a_machine_that_never_answers_is_given_up(guest: Callable[..., Guest]) -> None:
    with pytest.raises(GuestError, match="in time"):
        guest(hostile.silence, handshake_timeout=2.0).run(TRUE)
    with pytest.raises(GuestError, match="answer"):
        guest(hostile.silence_after_the_greeting, answer_timeout=2.0).run(TRUE)


def test_a_machine_that_reads_nothing_is_given_up(guest: Callable[..., Guest]) -> None:
    with pytest.raises(GuestError):
        guest(hostile.deaf, answer_timeout=2.0).run(TRUE, stdin=b"x" * (8 * MIB))


def test_a_stream_that_ends_in_a_frame_is_lost(guest: Callable[..., Guest]) -> None:
    with pytest.raises((BackendLost, GuestError)) as caught:
        guest(hostile.death_in_a_frame).run(TRUE)
    assert caught.value.code in {"backend_lost", "guest_error"}


def test_calls_to_the_host_reach_nothing_and_cost_little(
    machine: Machine, guest: Callable[..., Guest]
) -> None:
    fds = Path(f"/proc/{machine.device.pid}/fd")
    before = len(list(fds.iterdir()))
    with machine.open(port(hostile.calls_the_host)) as stream:
        answer = json.loads(stream.makefile("rb").readline())
        assert answer["asked"] + answer["refused"] == 1000
        assert len(list(fds.iterdir())) <= before + 2
    # And the device serves on.
    with pytest.raises(GuestError):
        guest(hostile.garbage).run(TRUE)


def test_a_machine_that_reboots_is_lost(machine: Machine, guest: Callable[..., Guest]) -> None:
    """The last of the module: the machine is gone afterwards."""
    with pytest.raises(BackendLost):
        guest(hostile.reboots).run(TRUE)
    assert machine.wait() == 0, machine.log()
