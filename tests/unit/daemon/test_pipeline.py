from types import SimpleNamespace

import msgspec
import pytest

from agentd.daemon.pipeline import Pipeline
from agentd.model.errors import InvalidInput, Refused, SandboxError
from agentd.model.limits import Limits
from agentd.model.principal import local
from agentd.model.result import Cause, CauseCode, Exit, SandboxInfo
from agentd.model.spec import ExecRequest, SandboxSpec


class Command:
    exit = Exit(0, None, Cause.of(CauseCode.EXITED, "done"))
    truncated, backlog = False, 0
    stdout, stderr = b"out", b"err"

    def __init__(self):
        self.calls = []

    def write(self, data):
        self.calls.append(data)

    def close_stdin(self):
        self.calls.append("eof")

    def close(self):
        self.calls.append("close")


class Guest:
    def __init__(self):
        self.requests, self.commands = [], []

    def start(self, request, *, capture):
        self.requests.append((request, capture))
        self.commands.append(Command())
        return self.commands[-1]


class Manager:
    def __init__(self):
        self.specs, self.ended = [], []
        self.destroy = self.ended.append

    def create(self, spec):
        self.specs.append(spec)
        wall = SimpleNamespace(workspace="/workspace", counters=dict)
        info = SandboxInfo("sbx-a", "fake", "none")
        guest = Guest()
        return SimpleNamespace(
            spec=spec,
            wall=wall,
            guest=guest,
            begin_command=lambda: guest,
            end_command=lambda: None,
            info=info,
            unreported_ms=2.0,
            why=None,
            enforcement={},
        )


class Gate:
    """Notes what it is asked, and lets through what ``tighten`` makes of it."""

    def __init__(self, tighten=lambda asked: asked):
        self.seen, self.ends = [], []
        self._tighten = tighten

    def sandbox(self, who, spec, labels, *, snapshot=""):
        self.seen.append(("sandbox", who.name, spec, labels))
        self.of = snapshot
        return self._tighten(spec)

    def fork(self, who, handle, count, labels):
        self.seen.append(("fork", who.name, count, labels))

    def command(self, who, handle, request, labels):
        self.seen.append(("command", who.name, request, labels))
        return self._tighten(request), Admission(self.ends)


class Admission:
    def __init__(self, ends):
        self._ends = ends

    act = SimpleNamespace(request="req-1")

    def end(self, result, outputs, input_digest=""):
        self._ends.append(result)
        return "rcp-1"

    def unconnected(self, reasons):
        assert not reasons

    def fail(self, error):
        self._ends.append(error)


def _deny(asked):
    raise Refused("not today")


ALICE = local("alice")


def test_a_sandbox_and_a_command_pass_the_gate_and_the_end_is_told():
    gate = Gate()
    pipeline = Pipeline(Manager(), gate)
    handle = pipeline.open(ALICE, SandboxSpec())
    result = pipeline.execute(ALICE, handle, ExecRequest(("true",)))
    assert [(what, who) for what, who, _, _ in gate.seen] == [
        ("sandbox", "alice"),
        ("command", "alice"),
    ]
    assert gate.seen[1][2].cwd == "/workspace"  # the gate sees what the sandbox adds
    assert (result.status, result.stdout, result.receipt) == ("ok", b"out", "rcp-1")
    assert [end.exit_code for end in gate.ends] == [0]
    assert handle.guest.commands[0].calls == ["close"]


def test_a_refusal_ends_it_before_anything_is_made():
    manager = Manager()
    with pytest.raises(Refused, match="not today"):
        Pipeline(manager, Gate(_deny)).open(ALICE, SandboxSpec())
    assert manager.specs == []
    gate = Gate()
    pipeline = Pipeline(manager, gate)
    handle = pipeline.open(ALICE, SandboxSpec())
    gate._tighten = _deny
    with pytest.raises(Refused, match="not today"):
        pipeline.execute(ALICE, handle, ExecRequest(("true",)))
    assert handle.guest.requests == []


def test_what_the_gate_answers_is_what_is_done():
    def tighten(asked):
        if isinstance(asked, SandboxSpec):
            return msgspec.structs.replace(asked, net="none")
        return msgspec.structs.replace(asked, timeout=1.0)

    manager = Manager()
    pipeline = Pipeline(manager, Gate(tighten))
    handle = pipeline.open(ALICE, SandboxSpec(net="host"))
    pipeline.execute(ALICE, handle, ExecRequest(("true",)))
    assert manager.specs[0].net == "none"
    assert handle.guest.requests[0][0].timeout == 1.0


def test_a_command_that_does_not_begin_or_is_let_go_has_an_end_too():
    gate = Gate()
    pipeline = Pipeline(Manager(), gate)
    handle = pipeline.open(ALICE, SandboxSpec())
    with pipeline.start(ALICE, handle, ExecRequest(("true",))):
        pass
    assert gate.ends == [None]

    def broken(request, *, capture):
        raise SandboxError("gone")

    handle.guest.start = broken
    with pytest.raises(SandboxError, match="gone"):
        pipeline.start(ALICE, handle, ExecRequest(("true",)))
    assert str(gate.ends[1]) == "gone"


def test_the_sandbox_completes_what_the_request_leaves_out():
    pipeline = Pipeline(Manager())
    limits = Limits(timeout=9.0, output=1000)
    handle = pipeline.open(ALICE, SandboxSpec(limits=limits, env={"A": "1", "B": "1"}))
    pipeline.execute(ALICE, handle, ExecRequest(("true",), env={"B": "2"}))
    pipeline.execute(ALICE, handle, ExecRequest(("true",), cwd="src", timeout=1.0))
    pipeline.execute(ALICE, handle, ExecRequest(("true",), cwd="/tmp"))
    first, second, third = (request for request, _ in handle.guest.requests)
    assert first.env == {"A": "1", "B": "2"}
    assert (first.cwd, first.timeout, first.output_limit) == ("/workspace", 9.0, 1000)
    assert (second.cwd, second.timeout) == ("/workspace/src", 1.0)
    assert third.cwd == "/tmp"


def test_stdin_is_fed_and_ended():
    pipeline = Pipeline(Manager())
    handle = pipeline.open(ALICE, SandboxSpec())
    pipeline.execute(ALICE, handle, ExecRequest(("cat",)), b"in")
    assert handle.guest.commands[0].calls == [b"in", "eof", "close"]
    assert handle.guest.requests[0][0].stdin is True


def test_only_the_first_command_waited_for_the_sandbox():
    pipeline = Pipeline(Manager())
    handle = pipeline.open(ALICE, SandboxSpec())
    timings = [pipeline.execute(ALICE, handle, ExecRequest(("x",))).timing for _ in range(2)]
    assert [timing.setup_ms for timing in timings] == [2.0, 0.0]
    assert timings[0].total_ms == timings[0].setup_ms + timings[0].exec_ms


def test_forks_pass_the_gate_and_their_number_is_bounded():
    manager = Manager()
    manager.fork = lambda handle, specs: list(specs)
    gate = Gate()
    pipeline = Pipeline(manager, gate)
    handle = pipeline.open(ALICE, SandboxSpec())
    assert pipeline.fork(ALICE, handle, 2, {"a": "b"}) == [SandboxSpec()] * 2
    assert gate.seen[-1] == ("fork", "alice", 2, {"a": "b"})
    with pytest.raises(InvalidInput, match=r"cannot fork 65 sandboxes .give 1 to 64"):
        pipeline.fork(ALICE, handle, 65)


def test_a_snapshots_spec_passes_the_gate():
    manager = Manager()
    manager.restore = lambda spec, snapshot: (spec, snapshot)
    gate = Gate(lambda asked: msgspec.structs.replace(asked, env={"A": "gate"}))
    kept = SimpleNamespace(id="snp-1")
    spec, snapshot = Pipeline(manager, gate).open(ALICE, SandboxSpec(), kept)
    assert (spec.env, snapshot, gate.of) == ({"A": "gate"}, kept, "snp-1")
