import pytest

from agentd.model.cause import CauseCode
from agentd.sandbox.backends.firecracker.exits import MonitorEnded, ending


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
        (-11, CauseCode.BACKEND_LOST, "signal 11"),
        (None, CauseCode.BACKEND_LOST, "gone"),
    ],
)
def test_each_status_has_a_cause(status: int | None, code: CauseCode, words: str) -> None:
    found = ending(status)
    assert found.code is code
    assert words in found.what
    assert bool(found.fix)


def test_a_kill_that_its_group_counted_is_the_oom_killers() -> None:
    assert ending(-9, oom=True).code is CauseCode.OOM
    assert ending(-11, oom=True).code is CauseCode.BACKEND_LOST


def test_the_error_says_what_and_keeps_the_log() -> None:
    error = MonitorEnded(ending(148), 148, "Shutting down VM after intercepting a bad syscall")
    assert "status 148" in str(error)
    assert error.ending.code is CauseCode.SECCOMP_VIOLATION
    assert "bad syscall" in error.__notes__[0]
