from types import SimpleNamespace

import msgspec
import pytest

from agentd.daemon.pipeline import Pipeline
from agentd.model.cause import Cause, CauseCode
from agentd.model.errors import InvalidInput, Refused
from agentd.model.limits import Limits
from agentd.model.result import Exit, SandboxInfo
from agentd.model.spec import ExecRequest, SandboxSpec


class Command:
    exit = Exit(0, None, Cause.of(CauseCode.EXITED, "done"))
    truncated = False
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
        self.specs = []

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
            enforcement={},
        )


def test_open_and_execute_pass_every_step_in_order():
    seen = []

    def note(name):
        def step(principal, asked):
            seen.append((name, principal, type(asked).__name__))
            return asked

        return step

    pipeline = Pipeline(Manager(), note("auth"), note("policy"))
    handle = pipeline.open("uid:7", SandboxSpec())
    result = pipeline.execute("uid:7", handle, ExecRequest(("true",)))
    assert seen == [
        ("auth", "uid:7", "SandboxSpec"),
        ("policy", "uid:7", "SandboxSpec"),
        ("auth", "uid:7", "ExecRequest"),
        ("policy", "uid:7", "ExecRequest"),
    ]
    assert (result.status, result.stdout, result.stderr) == ("ok", b"out", b"err")
    assert handle.guest.commands[0].calls == ["close"]


def test_a_refusing_step_ends_it_before_anything_is_made():
    def deny(principal, asked):
        raise Refused("not today")

    manager = Manager()
    with pytest.raises(Refused, match="not today"):
        Pipeline(manager, deny).open("uid:7", SandboxSpec())
    assert manager.specs == []


def test_a_step_may_change_what_is_asked():
    def tighten(principal, asked):
        if isinstance(asked, SandboxSpec):
            return msgspec.structs.replace(asked, net="none")
        return msgspec.structs.replace(asked, timeout=1.0)

    manager = Manager()
    pipeline = Pipeline(manager, tighten)
    handle = pipeline.open("uid:7", SandboxSpec(net="host"))
    pipeline.execute("uid:7", handle, ExecRequest(("true",)))
    assert manager.specs[0].net == "none"
    assert handle.guest.requests[0][0].timeout == 1.0


def test_a_step_that_answers_nonsense_does_not_pass():
    with pytest.raises(TypeError, match="answered a NoneType"):
        Pipeline(Manager(), lambda principal, asked: None).open("uid:7", SandboxSpec())


def test_the_sandbox_completes_what_the_request_leaves_out():
    pipeline = Pipeline(Manager())
    limits = Limits(timeout=9.0, output=1000)
    handle = pipeline.open("p", SandboxSpec(limits=limits, env={"A": "1", "B": "1"}))
    pipeline.execute("p", handle, ExecRequest(("true",), env={"B": "2"}))
    pipeline.execute("p", handle, ExecRequest(("true",), cwd="src", timeout=1.0))
    pipeline.execute("p", handle, ExecRequest(("true",), cwd="/tmp"))
    first, second, third = (request for request, _ in handle.guest.requests)
    assert first.env == {"A": "1", "B": "2"}
    assert (first.cwd, first.timeout, first.output_limit) == ("/workspace", 9.0, 1000)
    assert (second.cwd, second.timeout) == ("/workspace/src", 1.0)
    assert third.cwd == "/tmp"


def test_stdin_is_fed_and_ended():
    pipeline = Pipeline(Manager())
    handle = pipeline.open("p", SandboxSpec())
    pipeline.execute("p", handle, ExecRequest(("cat",)), b"in")
    assert handle.guest.commands[0].calls == [b"in", "eof", "close"]
    assert handle.guest.requests[0][0].stdin is True


def test_only_the_first_command_waited_for_the_sandbox():
    pipeline = Pipeline(Manager())
    handle = pipeline.open("p", SandboxSpec())
    timings = [pipeline.execute("p", handle, ExecRequest(("x",))).timing for _ in range(2)]
    assert [timing.setup_ms for timing in timings] == [2.0, 0.0]
    assert timings[0].total_ms == timings[0].setup_ms + timings[0].exec_ms


def test_each_fork_is_admitted_by_itself_and_their_number_is_bounded():
    asked = []

    def count(principal, spec):
        asked.append(spec)
        if len(asked) > 3:
            raise Refused("over your quota")
        return spec

    manager = Manager()
    manager.fork = lambda handle, specs: list(specs)
    pipeline = Pipeline(manager, count)
    handle = pipeline.open("p", SandboxSpec())
    assert pipeline.fork("p", handle, 2) == [SandboxSpec()] * 2
    with pytest.raises(Refused, match="over your quota"):
        pipeline.fork("p", handle, 1)
    with pytest.raises(InvalidInput, match=r"cannot fork 65 sandboxes .give 1 to 64"):
        pipeline.fork("p", handle, 65)
    assert len(asked) == 4


def test_a_snapshots_spec_passes_every_step():
    def tighten(principal, asked):
        return msgspec.structs.replace(asked, env={"A": "step"})

    manager = Manager()
    manager.restore = lambda spec, snapshot: (spec, snapshot)
    spec, snapshot = Pipeline(manager, tighten).open("p", SandboxSpec(), "kept")
    assert (spec.env, snapshot) == ({"A": "step"}, "kept")
