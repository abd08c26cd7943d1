import threading
from types import SimpleNamespace

import pytest

from agentd.daemon.commands import ends
from agentd.daemon.commands.begin import BeginStreamed
from agentd.daemon.commands.command import Command
from agentd.daemon.commands.ends import DESTROYED, SHUT_DOWN, completed, refine, status
from agentd.daemon.commands.listed import Listed
from agentd.model.errors import BackendLost, Conflict, GuestError
from agentd.model.isolation import IsolationLevel
from agentd.model.result import Cause, CauseCode, Exit, SandboxInfo
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.journal.journals import Journals
from agentd.sandbox.manager import Manager


def ended(code, exit_code=None, signal=None):
    return Exit(exit_code, signal, Cause.of(CauseCode(code), "as it went"))


@pytest.mark.parametrize(
    ("end", "after", "cause"),
    [
        (ended("exited", 0), {"oom": 1, "pids": 1}, "exited"),
        (ended("exited", 1), {}, "exited"),
        (ended("exited", 1), {"oom": 1}, "oom"),
        (ended("signalled", None, 9), {"oom": 2}, "oom"),
        (ended("exited", 2), {"pids": 7}, "pids_limit"),
        (ended("signalled", None, 6), {"pids": 1}, "pids_limit"),
        (ended("exited", 1), {"oom": 1, "pids": 1}, "oom"),
        (ended("signalled", None, 9), {"oom": 0, "pids": 0}, "signalled"),
        (ended("timeout", None, 9), {"oom": 1}, "timeout"),
        (ended("cancelled", None, 9), {"oom": 1}, "cancelled"),
    ],
)
def test_the_walls_counters_refine_the_cause(end, after, cause):
    refined = refine(end, {"oom": 0, "pids": 0}, after)
    assert refined.cause.code == cause
    assert (refined.exit_code, refined.signal) == (end.exit_code, end.signal)


def test_hits_of_earlier_commands_do_not_count():
    end = ended("exited", 1)
    assert refine(end, {"oom": 3}, {"oom": 3}) is end


@pytest.mark.parametrize(
    ("end", "word"),
    [
        (ended("exited", 0), "ok"),
        (ended("exited", 1), "failed"),
        (ended("timeout", None, 9), "failed"),
        (ended("spawn_failed", 127), "error"),
        (ended("backend_lost"), "error"),
    ],
)
def test_status(end, word):
    assert status(end) == word


class Breaking:
    """A command whose stream breaks."""

    exit = None
    pid = 7
    truncated = False
    stdout = bytearray(b"before")

    def __init__(self, error):
        self.error = error

    def step(self, timeout, fds):
        raise self.error

    def close(self):
        pass


def broken(error, *, dies, oom, admission=None):
    counters = {"oom": 0}
    wall = SimpleNamespace(enforcement={}, wait=lambda s: dies, counters=lambda: counters)
    guest = SimpleNamespace(start=lambda request, capture: Breaking(error))
    info = SandboxInfo("sbx-a", "fake", "none")
    handle = SimpleNamespace(
        wall=wall,
        begin_command=lambda: guest,
        end_command=lambda: None,
        info=info,
        unreported_ms=5.0,
        enforcement={},
    )
    command = Command(handle, BeginStreamed(ExecRequest(("x",)), capture=True), admission)
    counters = {"oom": oom}
    return command


@pytest.mark.parametrize(
    ("dies", "oom", "cause"),
    [(True, 0, "backend_lost"), (True, 1, "oom"), (False, 0, "backend_lost")],
)
def test_a_lost_wall_is_a_result_with_its_cause(dies, oom, cause):
    with broken(BackendLost("gone"), dies=dies, oom=oom) as command:
        result = command.finish()
    assert result.cause.code == cause
    assert result.exit_code is None
    assert result.stdout == b"before"
    assert result.timing.setup_ms == 5.0


def test_a_lying_agent_behind_a_living_wall_is_an_error():
    with broken(GuestError("nonsense"), dies=False, oom=0) as command, pytest.raises(GuestError):
        command.finish()


@pytest.mark.parametrize(("why", "code"), [(DESTROYED, "cancelled"), (None, "backend_lost")])
def test_what_is_lost_with_a_sandbox_that_somebody_ends_has_that_cause(why, code):
    """Whatever of it the loss was noticed at: here at the counters of a wall that is gone."""

    def counters():
        raise BackendLost("gone")

    recorded = []
    admission = SimpleNamespace(
        act=SimpleNamespace(request="req-a"),
        unconnected=lambda refused: None,
        end=lambda result, digests, read: recorded.append(str(result.cause.code)),
        fail=lambda error: recorded.append(str(ends.cause_of(error).code)),
    )
    command = broken(BackendLost("gone"), dies=True, oom=0, admission=admission)
    command.running.exit = ended("signalled", None, 9)
    command._handle.why, command._handle.wall.counters = why, counters
    command.abandon(BackendLost("gone"))
    assert recorded == [code]


def test_a_command_counts_from_its_start_to_its_close_and_once():
    running = []
    guest = SimpleNamespace(start=lambda request, capture: Breaking(BackendLost("gone")))
    handle = SimpleNamespace(
        wall=SimpleNamespace(counters=dict),
        begin_command=lambda: running.append("begun") or guest,
        end_command=lambda: running.append("ended"),
        unreported_ms=0.0,
        counters={},
    )
    command = Command(handle, BeginStreamed(ExecRequest(("x",)), capture=True))
    assert running == ["begun"]
    command.close()
    command.close()
    assert running == ["begun", "ended"]


def test_a_command_that_does_not_start_does_not_count():
    running = []

    def start(request, capture):
        raise BackendLost("gone")

    handle = SimpleNamespace(
        begin_command=lambda: running.append("begun") or SimpleNamespace(start=start),
        end_command=lambda: running.append("ended"),
        unreported_ms=0.0,
    )
    with pytest.raises(BackendLost):
        Command(handle, BeginStreamed(ExecRequest(("x",)), capture=True))
    assert running == ["begun", "ended"]


def test_no_later_thread_is_taken_for_the_one_that_drove_it(tmp_path):
    """A thread that begins has, as a rule, the number of the last one that ended."""
    manager, journals, told = Manager(), Journals(str(tmp_path)), []
    try:
        handle = manager.create(SandboxSpec(isolation=IsolationLevel.NONE, backend="host"))
        listed = Listed("prc-1", SimpleNamespace(id="sbx-1"), ("true",), journals.create("prc-1"))
        begin = BeginStreamed(completed(ExecRequest(("true",)), handle))
        command = Command(handle, begin, None, listed)
        driver = threading.Thread(target=command.drive, kwargs={"keep": False})
        driver.start()
        driver.join()

        def ask():
            try:
                command.resize(24, 80)
            except Conflict as error:
                told.append(error.message)

        for _ in range(8):
            later = threading.Thread(target=ask)
            later.start()
            later.join()
    finally:
        manager.close()
        journals.close()
    assert told == ["process prc-1 has ended"] * 8


def test_what_a_shutdown_ends_is_told_so_though_its_client_is_cut_off_then(tmp_path):
    """As of one that takes its time to die: its connection goes with its daemon."""
    manager, journals = Manager(), Journals(str(tmp_path))
    try:
        handle = manager.create(SandboxSpec(isolation=IsolationLevel.NONE, backend="host"))
        listed = Listed("prc-1", SimpleNamespace(id="sbx-1"), ("sleep",), journals.create("prc-1"))
        begin = BeginStreamed(completed(ExecRequest(("sleep", "600")), handle))
        command = Command(handle, begin, None, listed)
        command.cancel(SHUT_DOWN)
        command.cancel()
        command.drive(keep=False)
        assert command.result.cause.code == "interrupted"
    finally:
        manager.close()
        journals.close()


def test_what_is_let_go_with_its_sandbox_is_closed(tmp_path):
    """Whoever follows it fails as the sandbox is ended: nothing of the stream stays open."""
    manager, journals = Manager(), Journals(str(tmp_path))
    try:
        handle = manager.create(SandboxSpec(isolation=IsolationLevel.NONE, backend="host"))
        listed = Listed("prc-1", SimpleNamespace(id="sbx-1"), ("sh",), journals.create("prc-1"))
        request = ExecRequest(("sh", "-c", "echo begun; exec sleep 600"))
        command = Command(handle, BeginStreamed(completed(request, handle)), None, listed)
        running = command.running
        assert handle.guest._pool.in_use()

        def emit(stream, data):
            handle.why = DESTROYED
            raise BackendLost("gone")

        with pytest.raises(BackendLost):
            command.follow(emit)
        assert command.result.cause.code == "cancelled"
        assert running is not command.running and not handle.guest._pool.in_use()
    finally:
        manager.close()
        journals.close()
