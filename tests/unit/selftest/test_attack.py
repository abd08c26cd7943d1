"""What is read out of an attack's words: a script that was cut short proves nothing."""

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.result import Cause, CauseCode, Result, SandboxInfo, Timing, Usage
from agentd.selftest.attack import REFUSALS, AttackOutcome, by, refused, said_only, shown
from agentd.selftest.attacks import ATTACKS, agent, limits
from agentd.selftest.planted import Planted
from agentd.selftest.prelude import source
from agentd.selftest.report import Verdict

NOTHING: Planted = None  # type: ignore[assignment]  # these judges look at words alone


def result(
    code: CauseCode = CauseCode.EXITED,
    exit_code: int | None = 0,
    out: bytes = b"",
    err: bytes = b"",
) -> Result:
    return Result(
        request_id="r",
        status="ok",
        exit_code=exit_code,
        signal=None,
        cause=Cause.of(code, code.value),
        stdout=out,
        stderr=err,
        truncated=False,
        usage=Usage(),
        timing=Timing(),
        sandbox=SandboxInfo("s", "b", "l"),
        enforcement={},
    )


def seen(said: dict[str, str], ended: Result | None = None) -> AttackOutcome:
    return AttackOutcome(said, ended or result(), NOTHING)


@pytest.mark.parametrize("refusal", sorted(REFUSALS))
def test_a_refusal_is_stopped(refusal: str) -> None:
    assert refused()(seen({"mount": refusal, "end": "reached"}))[0] is Verdict.STOPPED


@pytest.mark.parametrize("answer", ["0", "None", "done", "opened", "EINVAL", "EBADF", "EFAULT"])
def test_any_other_answer_got_through(answer: str) -> None:
    verdict, detail = refused()(seen({"mount": "EPERM", "setns": answer, "end": "reached"}))
    assert verdict is Verdict.THROUGH
    assert detail == f"setns {answer}"


def test_without_its_last_word_it_is_undecided() -> None:
    ended = result(exit_code=1, err=b"Traceback\nNameError: name 'x'")
    verdict, detail = said_only({"False"})(seen({"path": "False"}, ended))
    assert verdict is Verdict.UNDECIDED
    assert "NameError" in detail


def test_nothing_said_is_not_stopped() -> None:
    for attack in ATTACKS:
        if attack.name not in ("signal a host process",) and "reach" not in attack.name:
            verdict, _ = attack.judge(seen({}, result(exit_code=1)))
            assert verdict in (Verdict.UNDECIDED, Verdict.BROKEN), attack.name


def test_what_this_machine_does_not_have_is_not_applicable() -> None:
    verdict, detail = refused()(seen({"absent": "no such call here"}))
    assert (verdict, detail) == (Verdict.NOT_APPLICABLE, "no such call here")


def test_words_are_made_safe_to_show() -> None:
    assert "\x1b" not in shown({"name": "\x1b[2J"})
    assert shown({"a": "EPERM", "b": "EPERM", "end": "reached"}) == "EPERM"
    many = {str(n): str(n) for n in range(9)}
    assert shown(many).endswith("and 5 more")


def test_every_name_is_there_once_and_every_gap_has_a_reason() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names)
    for attack in ATTACKS:
        gaps = {IsolationLevel.PROCESS, IsolationLevel.NAMESPACE, IsolationLevel.MICROVM}
        if gaps - set(attack.stopped_by):
            assert attack.otherwise, attack.name


def test_levels_without_a_control_are_left_out() -> None:
    assert set(by("", "x y", "")) == {IsolationLevel.NAMESPACE}
    assert by("a", "x y")[IsolationLevel.NAMESPACE] == ("x", "y")
    assert by("a")[IsolationLevel.NONE] == ("isolation",)


def _named(name: str) -> limits.Attack:
    return next(attack for attack in ATTACKS if attack.name == name)


@pytest.mark.parametrize(
    ("took", "refusal", "verdict"),
    [
        (30, "EAGAIN", Verdict.STOPPED),
        (33, "EAGAIN", Verdict.THROUGH),  # stopped, and too late
        (128, None, Verdict.THROUGH),
        (30, "EPERM", Verdict.THROUGH),  # by something else than the limit
    ],
)
def test_a_bomb_is_stopped_at_its_limit(took: int, refusal: str | None, verdict: Verdict) -> None:
    said = {"took": str(took), "end": "reached"} | ({"refused": refusal} if refusal else {})
    assert _named("fork without end").judge(seen(said))[0] is verdict


def test_memory_is_stopped_by_its_own_cause_alone() -> None:
    judge = _named("take all memory").judge
    assert judge(seen({}, result(CauseCode.OOM, None)))[0] is Verdict.STOPPED
    assert judge(seen({}, result(CauseCode.SIGNALLED, None)))[0] is Verdict.UNDECIDED
    assert judge(seen({"took": "1", "end": "reached"}))[0] is Verdict.THROUGH


@pytest.mark.parametrize(
    ("code", "size", "verdict"),
    [
        (CauseCode.OUTPUT_LIMIT, limits.OUTPUT, Verdict.STOPPED),
        (CauseCode.OUTPUT_LIMIT, limits.OUTPUT + 1, Verdict.THROUGH),
        (CauseCode.EXITED, limits.OUTPUT + 1, Verdict.THROUGH),
        (CauseCode.TIMEOUT, 5, Verdict.UNDECIDED),
    ],
)
def test_a_flood_is_stopped_at_its_limit(code: CauseCode, size: int, verdict: Verdict) -> None:
    ended = result(code, out=b"x" * size)
    assert _named("flood the caller with output").judge(seen({}, ended))[0] is verdict


def test_forged_answers_that_were_believed_are_told() -> None:
    judge = _named("forge the agent's answers").judge
    frames = agent._FORGED
    whole = result(exit_code=agent._STATUS, out=frames, err=frames)
    said = {"end": "reached"}
    assert judge(seen(said, whole))[0] is Verdict.STOPPED
    assert judge(seen(said, result(exit_code=0, out=frames, err=frames)))[0] is Verdict.THROUGH
    assert judge(seen(said, result(exit_code=agent._STATUS, out=frames)))[0] is Verdict.THROUGH


@pytest.mark.parametrize(
    ("took", "verdict"),
    [("0.02", Verdict.STOPPED), ("0.11", Verdict.STOPPED), ("0.2", Verdict.THROUGH)],
)
def test_processors_are_stopped_at_their_limit(took: str, verdict: Verdict) -> None:
    judge = _named("run on more processors").judge
    assert judge(seen({"took": took, "end": "reached"}))[0] is verdict


# A child runs for 5 ms of each 100, and after each half of one others run for 0.7.
BUSY = """
import os, time
parent, calls = os.getpid(), []
def monotonic():
    calls.append(0)
    if os.getpid() == parent:
        return 2.0 * (len(calls) - 1)
    period, step = divmod(len(calls), 500)
    return period * 0.1 + step * 1e-5 + step // 50 * 7e-4
time.monotonic = monotonic
"""


def test_what_others_run_on_a_busy_machine_is_not_counted() -> None:
    attack = _named("run on more processors")
    script = BUSY + source(attack.script)
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, check=True)
    said = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
    assert attack.judge(seen(said)) == (Verdict.STOPPED, "ran on 0.10 processors of 0.1")


# On a busy machine a program starts late.
LATE = """
import os, time
begin = os.execv
def late(*words):
    time.sleep(2)
    begin(*words)
os.execv = late
"""


def test_what_is_to_outlive_the_sandbox_runs_when_the_attack_has_ended() -> None:
    marker = secrets.token_hex(16)
    script = LATE + source(_named("outlive the sandbox").script)
    words = [sys.executable, "-I", "-c", script, marker[:16], marker[16:]]
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
    found = [path for path in Path("/proc").glob("[0-9]*/cmdline") if marker in _text(path)]
    for path in found:
        os.kill(int(path.parent.name), signal.SIGKILL)
    assert len(found) == 1


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


@pytest.mark.parametrize("apart", [0.0, 1.0, -1.0, 30.0])
def test_a_kernel_that_was_booted_with_the_hosts_is_the_hosts(apart: float) -> None:
    (attack,) = (a for a in ATTACKS if a.name == "have the host's kernel")
    seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - apart
    verdict, _ = attack.judge(seen({"seconds": str(seconds), "boot": "x", "end": "reached"}))
    assert verdict is (Verdict.STOPPED if apart == 30 else Verdict.THROUGH)


def test_bombs_are_bounded_by_themselves() -> None:
    """What gets through takes at most a fifth more than the limit, or 200 processes."""
    for attack in ATTACKS:
        asked = attack.limits
        assert asked == Limits() or attack.script.count("while True") == 0
    assert 4 * limits.PIDS <= 200
    assert limits._OVER <= 1.2
