import pytest

from agentd.model.result import CauseCode
from agentd.sandbox.backends.firecracker.exits import of_status


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (0, CauseCode.BACKEND_LOST, "shut down"),
        (1, CauseCode.BACKEND_LOST, "gave up"),
        (12, CauseCode.OOM, "no memory"),
        (127, CauseCode.SPAWN_FAILED, "could not be started"),
        (148, CauseCode.SECCOMP_VIOLATION, "system call"),
        (149, CauseCode.OOM, "SIGBUS"),
        (150, CauseCode.BACKEND_LOST, "SIGSEGV"),
        (151, CauseCode.DISK_FULL, "SIGXFSZ"),
        (152, CauseCode.SPAWN_FAILED, "configuration"),
        (153, CauseCode.SPAWN_FAILED, "arguments"),
        (154, CauseCode.TIMEOUT, "SIGXCPU"),
        (155, CauseCode.BACKEND_LOST, "SIGPIPE"),
        (156, CauseCode.CANCELLED, "SIGHUP"),
        (157, CauseCode.BACKEND_LOST, "SIGILL"),
        (77, CauseCode.BACKEND_LOST, "77"),
        (-9, CauseCode.BACKEND_LOST, "killed"),
        (-11, CauseCode.BACKEND_LOST, "SIGSEGV"),
        (-40, CauseCode.BACKEND_LOST, "signal 40"),
        (None, CauseCode.BACKEND_LOST, "is not known"),
    ],
)
def test_each_status_has_a_cause(status: int | None, code: CauseCode, words: str) -> None:
    found = of_status(status)
    assert found.code is code
    assert words in found.what
    assert bool(found.fix)


def test_a_kill_that_its_group_counted_is_the_oom_killers() -> None:
    assert of_status(-9, oom=True).code is CauseCode.OOM
    assert of_status(-11, oom=True).code is CauseCode.BACKEND_LOST


@pytest.mark.parametrize("status", [148, -31])
def test_a_forbidden_call_is_told_with_its_number(status: int) -> None:
    log = "[WARN] chatter\n[ERROR] Shutting down VM after intercepting a bad syscall (232).\n"
    cause = of_status(status, log).cause()
    assert cause.code is CauseCode.SECCOMP_VIOLATION
    assert "it made system call 232, which its filter forbids" in cause.message
    assert "chatter | [ERROR] Shutting down" in cause.message


def test_what_it_printed_last_is_told_and_safe() -> None:
    log = "x" * 5000 + "\n\x1b[2Jthe reason\n\n"
    cause = of_status(1, log).cause()
    assert cause.message.endswith("\\x1b[2Jthe reason")
    assert len(cause.message) < 600
    # What a guest that shuts down printed is not why it did.
    assert "reason" not in of_status(0, log).cause().message
