"""A limit met is an answer with its cause, and the sandbox goes on; one not held is refused."""

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from agentd import AgentdError, CauseCode, Refused, Sandbox
from agentd.testing.patience import SLOWER
from agentd.testing.walls.claims import granted, needs, own_kernel

MIB = 1 << 20
SECONDS = 120.0  # for what takes a moment
# The shell itself has it, and no other program.
EATER = """
eaten=0123456789abcdef
while [ ${#eaten} -lt 256000000 ]; do eaten=$eaten$eaten; done
echo ${#eaten}
"""
SPINNER = """
import time
began, end = time.monotonic(), time.process_time() + 0.3
while time.process_time() < end:
    pass
print(time.monotonic() - began)
"""
# Ends what it started by itself: behind the walls without a pid namespace nothing else may.
FORKER = """
import subprocess, sys
started = []
try:
    for _ in range(60):
        started.append(subprocess.Popen(["sleep", "1000"]))
except OSError as error:
    print(error.strerror, file=sys.stderr)
for process in started:
    process.kill()
    process.wait()
sys.exit(len(started) < 60)
"""


def _goes_on(sandbox: Sandbox) -> None:
    assert sandbox.run("echo on").text == "on\n"
    assert sandbox.ping() is not None


@pytest.mark.shares_machine
def test_a_command_that_runs_too_long(sandbox: Sandbox) -> None:
    seconds = 2 * SLOWER
    # It ends by itself where nobody ends it.
    script, deadline = f"echo first; sleep {10 * seconds:g}", time.monotonic() + SECONDS
    # A busy machine may take all of that before it has said anything, but not each time.
    while not (result := sandbox.run(script, timeout=seconds)).stdout:
        assert result.cause.code is CauseCode.TIMEOUT
        assert time.monotonic() < deadline, "none of them began in time"
    assert result.cause.code is CauseCode.TIMEOUT
    assert result.status == "failed"
    assert result.exit_code is None
    assert f"{seconds:g} s" in result.cause.message
    assert result.cause.remediation
    assert result.stdout == b"first\n"
    _goes_on(sandbox)


@pytest.mark.shares_machine
def test_a_timeout_takes_the_whole_process_group(sandbox: Sandbox) -> None:
    script = "trap '' TERM INT HUP; sleep 1000 & sleep 1000; sleep 1000"
    assert sandbox.run(script, timeout=0.3).cause.code is CauseCode.TIMEOUT
    _goes_on(sandbox)


def test_a_sandboxes_timeout_holds_for_each_command(make: Callable[..., Sandbox]) -> None:
    sandbox = make(timeout="1s")
    assert sandbox.run("sleep 1000").cause.code is CauseCode.TIMEOUT
    assert sandbox.run("sleep 1000").cause.code is CauseCode.TIMEOUT
    # Of its second a busy machine may take all, but not each time.
    deadline = time.monotonic() + SECONDS
    while (found := sandbox.run("echo on")).cause.code is CauseCode.TIMEOUT:
        assert time.monotonic() < deadline, "none of them ended within a second"
    assert found.text == "on\n"
    assert sandbox.ping() is not None


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_that_writes_too_much(make: Callable[..., Sandbox], stream: str) -> None:
    sandbox = make(output="64K")
    redirect = ">&2" if stream == "stderr" else ""
    result = sandbox.run(f"echo small; yes {redirect}")
    assert result.cause.code is CauseCode.OUTPUT_LIMIT
    assert result.truncated
    assert len(getattr(result, stream)) == 65536
    assert "65536 bytes" in result.cause.message
    assert result.cause.remediation
    _goes_on(sandbox)


def test_output_up_to_its_limit_is_whole(make: Callable[..., Sandbox]) -> None:
    result = make(output="64K").run("head -c 65536 /dev/zero")
    assert (len(result.stdout), result.exit_code, result.truncated) == (65536, 0, False)


@pytest.mark.shares_machine
def test_a_cancelled_command(sandbox: Sandbox) -> None:
    with sandbox.start("echo up; sleep 1000") as process:
        for chunk in process:
            assert chunk.data == b"up\n"
            process.kill()
            break
        result = process.wait()
    assert result.cause.code is CauseCode.CANCELLED
    assert result.status == "failed"
    _goes_on(sandbox)


def test_memory_is_bounded(make: Callable[..., Sandbox]) -> None:
    sandbox = granted(make, memory="64M")
    result = sandbox.run(EATER)
    assert result.cause.code is CauseCode.OOM
    assert result.cause.remediation
    if "all of it ends" not in sandbox.enforcement["memory"].detail:
        _goes_on(sandbox)


@pytest.mark.shares_machine
def test_processors_are_bounded(sandbox: Sandbox, make: Callable[..., Sandbox]) -> None:
    if own_kernel(sandbox):
        pytest.skip("a machine that is held up does not see it: its clocks go on")
    small = granted(make, cpus=0.2)
    needs(small, "python3")
    # 0.3 s of work take 1.5 s. A busy machine makes that longer, and nothing makes it shorter.
    assert float(small.run(["python3", "-c", SPINNER], check=True).text) > 0.75


def test_processes_are_bounded(make: Callable[..., Sandbox]) -> None:
    sandbox = granted(make, pids=30)
    needs(sandbox, "python3")
    result = sandbox.run(["python3", "-c", FORKER])
    assert (result.status, result.exit_code) == ("failed", 1)
    assert os.strerror(errno.EAGAIN).encode() in result.stderr
    if "cgroup" in sandbox.enforcement["pids"].detail:
        assert result.cause.code is CauseCode.PIDS_LIMIT
        assert result.cause.remediation
    _goes_on(sandbox)


def test_disk_is_bounded(make: Callable[..., Sandbox]) -> None:
    sandbox = granted(make, disk="4M")
    result = sandbox.run("dd if=/dev/zero of=big bs=1000 count=8000")
    assert result.status == "failed"
    assert b"No space left" in result.stderr
    assert result.cause.code is CauseCode.DISK_FULL
    assert result.cause.remediation
    assert sandbox.run("rm big && echo small > file && cat file").text == "small\n"
    assert sandbox.run("head -c 8000000 /dev/zero > /tmp/big").status == "failed"
    assert sandbox.run("head -c 8000000 /dev/zero > ~/big").status == "failed"


def test_open_files_are_bounded(make: Callable[..., Sandbox]) -> None:
    sandbox = granted(make, open_files=64)
    assert sandbox.run("ulimit -n; ulimit -Hn").text == "64\n64\n"
    _goes_on(sandbox)


@pytest.mark.parametrize(
    "limit",
    [{"memory": "64M"}, {"cpus": 0.5}, {"pids": 40}, {"disk": "8M"}, {"open_files": 100}],
    ids=lambda limit: next(iter(limit)),
)
def test_a_limit_that_is_asked_for_is_held_or_refused(
    make: Callable[..., Sandbox], limit: dict[str, Any]
) -> None:
    (name, value) = next(iter(limit.items()))
    try:
        sandbox = make(**limit)
    except Refused as refusal:
        assert refusal.remediation
        assert name in str(refusal).replace("-", "_") or "enforces nothing" in str(refusal)
        return
    control = sandbox.enforcement[name]
    assert control.enforced, f"{name} was promised and is not held: {control.detail}"
    assert control.asked == str(value)
    assert control.detail


@pytest.mark.shares_machine
@pytest.mark.parametrize("limit", ["memory", "cpus", "pids", "disk", "open_files"])
def test_a_default_limit_is_reported_as_it_is(sandbox: Sandbox, limit: str) -> None:
    if limit == "cpus" and limit not in sandbox.enforcement:
        return  # there is no default
    control = sandbox.enforcement[limit]
    assert control.asked.startswith("default")
    assert control.detail, "what holds it, or why nothing does"


def test_a_limit_of_one_sandbox_is_not_anothers(make: Callable[..., Sandbox]) -> None:
    small, large = make(output="1K"), make()
    results = {}

    def run(name: str, sandbox: Sandbox) -> None:
        results[name] = sandbox.run("head -c 100000 /dev/zero")

    threads = [
        threading.Thread(target=run, args=pair) for pair in (("small", small), ("large", large))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results["small"].cause.code is CauseCode.OUTPUT_LIMIT
    assert results["large"].exit_code == 0


def test_nonsense_is_refused_before_anything_is_built(make: Callable[..., Sandbox]) -> None:
    for wanted in ({"memory": "0"}, {"pids": 0}, {"timeout": "-1"}, {"net": "some"}):
        with pytest.raises(AgentdError) as caught:
            make(**wanted)
        assert caught.value.code == "invalid_input"
        assert caught.value.remediation
