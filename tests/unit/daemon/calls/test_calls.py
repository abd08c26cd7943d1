"""A call from what was asked to the signed record of what came of it, on this very host."""

import os

import pytest
from tests.unit.daemon.known import ALICE, DIGEST, Says, allowing

from agentd.audit.errors import AuditError
from agentd.audit.receipt import verify
from agentd.capability.registry import Registry
from agentd.daemon.admission.records import digest
from agentd.daemon.calls.calls import Calls
from agentd.daemon.calls.embedded import OwnSandboxes
from agentd.daemon.pipeline import Pipeline
from agentd.model import context
from agentd.model.api import CallBody, SandboxBody
from agentd.model.capability import About, CallFailed, Needs, Outcome
from agentd.model.decision import Decision
from agentd.model.errors import AgentdError, InvalidInput, NotFound, PolicyDenied, Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.principal import Principal
from agentd.model.result import CauseCode
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.manager import Manager

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "words": {"type": "string", "default": "hello"},
        "env": {"type": "object"},
        "timeout_ms": {"type": "integer"},
    },
}
NONE = IsolationLevel.NONE


class Does:
    """A capability that does what the test says."""

    def __init__(self, name, do, needs=None):
        self.about = About(name, "for tests", SCHEMA, needs=needs or Needs(level=NONE))
        self.run = do


def echo(call, inside):
    end = inside.execute(ExecRequest(argv=("echo", call.parameters["words"])), b"", call.emit)
    return Outcome({"words": end.text, "status": end.status}, end)


def counted(call, inside):
    return Outcome({"length": len(call.parameters["words"])})


def missing(call, inside):
    raise CallFailed("not_found", f"there is no {call.parameters['words']}")


def broken(call, inside):
    raise ValueError("a secret of the daemon")


@pytest.fixture
def pipeline():
    manager = Manager()
    yield Pipeline(manager)
    manager.close()


@pytest.fixture
def calls(gate, pipeline):
    def make(policy=None, handle=None, **capabilities):
        registry = Registry(points=list)
        for name, (do, needs) in {
            "echo": (echo, None),
            "count": (counted, None),
            "missing": (missing, None),
            "broken": (broken, None),
            "fetch": (counted, Needs(level=NONE, network=True, sandbox=False)),
            "strong": (counted, Needs(level=IsolationLevel.MICROVM)),
            **capabilities,
        }.items():
            full = f"test.{name}.v1"
            registry._loaded[full] = Does(full, do, needs)
        return Calls(registry, gate(policy), OwnSandboxes(pipeline, handle))

    return make


def body(name, *, sandbox=None, bundle=None, **parameters):
    create = SandboxBody(backend="host", isolation="none") if sandbox is None else SandboxBody()
    return CallBody(f"test.{name}.v1", parameters, sandbox, create, bundle)


class TestItsEnd:
    def test_a_command_s(self, calls, pipeline, records, key, kept):
        seen = []
        with context.request("req-7"):
            view = calls(allowing()).call(
                ALICE, body("echo", words="hi"), lambda *p: seen.append(p)
            )
        assert (view.request_id, view.capability, view.status) == ("req-7", "test.echo.v1", "ok")
        assert view.value == {"words": "hi\n", "status": "ok"}
        assert seen == [("stdout", b"hi\n")]
        assert (view.cause.code, view.sandbox.backend, view.sandbox.level) == (
            "exited",
            "host",
            "none",
        )
        assert "isolation" in view.enforcement or view.enforcement == {}
        assert view.decision.bundle == DIGEST
        assert view.timing.total_ms >= view.timing.exec_ms > 0
        said = verify(records.get(view.receipt), key.public_pem()).predicate
        assert said.execution.capability == "test.echo.v1"
        assert said.execution.sandbox == view.sandbox.id
        assert said.execution.decision.bundle == DIGEST
        assert said.execution.outputs["stdout"] == digest(b"hi\n")
        assert kept.kinds() == ["admission", "start", "end"]
        assert pipeline.manager._handles == {}  # it was made for the call

    def test_of_one_without_a_command(self, calls, records, key):
        view = calls().call(ALICE, body("count", words="four"))
        assert (view.status, view.value, view.cause.code) == ("ok", {"length": 4}, "exited")
        said = verify(records.get(view.receipt), key.public_pem()).predicate.execution
        assert said.exit_code is None and said.backend == "host"
        assert said.outputs == {"value": digest(b'{"length":4}')}

    def test_of_one_that_failed(self, calls, kept, pipeline):
        with pytest.raises(CallFailed) as caught:
            calls().call(ALICE, body("missing", words="bread"))
        assert caught.value.code == "not_found"
        *_, end = kept.records()
        assert end.fields["cause"]["code"] == CauseCode.FAILED
        assert "not_found: there is no bread" in end.fields["cause"]["message"]
        assert pipeline.manager._handles == {}

    def test_of_one_that_broke(self, calls, kept):
        with pytest.raises(AgentdError, match=r"test.broken.v1 failed"):
            calls().call(ALICE, body("broken"))
        assert kept.kinds() == ["admission", "start", "end"]

    def test_of_one_whose_follower_left(self, calls, kept, pipeline):
        class Gone(AgentdError):
            code = "cancelled"

        def emit(kind, data):
            raise Gone("nobody follows")

        with pytest.raises(Gone):
            calls().call(ALICE, body("echo"), emit)
        assert kept.records()[-1].fields["cause"]["code"] == CauseCode.CANCELLED
        assert pipeline.manager._handles == {}

    def test_of_one_that_is_cancelled_from_outside(self, calls, kept):
        def sleep(call, inside):
            end = inside.execute(ExecRequest(argv=("sleep", "600")), b"", call.emit)
            return Outcome({}, end)

        ours, theirs = os.pipe()
        os.close(theirs)  # readable: it is at its end
        try:
            view = calls(sleep=(sleep, None)).call(ALICE, body("sleep"), cancel=ours)
        finally:
            os.close(ours)
        assert (view.status, view.cause.code) == ("failed", CauseCode.CANCELLED)

    def test_one_that_cannot_be_written_down_is_no_success(self, calls, kept):
        def last(call, inside):
            kept.log.close()
            return Outcome({})

        with pytest.raises(AuditError):
            calls(last=(last, None)).call(ALICE, body("last"))


class TestBeforeIt:
    def test_an_unknown_capability_asks_no_policy(self, calls, kept):
        policy = allowing()
        with pytest.raises(NotFound):
            calls(policy).call(ALICE, body("nothing"))
        assert policy.asked == [] and kept.kinds() == []

    def test_wrong_parameters_ask_no_policy(self, calls, kept):
        policy = allowing()
        with pytest.raises(InvalidInput):
            calls(policy).call(ALICE, body("count", words=7))
        assert policy.asked == [] and kept.kinds() == []

    def test_the_policy_is_asked_with_the_defaults_in_place(self, calls):
        policy = allowing()
        calls(policy).call(ALICE, body("count"), via="http")
        (asked,) = policy.asked
        assert asked.parameters == {"words": "hello"}
        assert asked.request["via"] == "http" and asked.request["signer"] == ""
        assert asked.sandbox["id"] == "" and asked.sandbox["backend"] == "host"
        assert asked.capability["needs"]["level"] == "none"

    def test_a_signed_request_names_its_signer(self, calls, kept):
        policy = allowing()
        signer = Principal("bob", frozenset({"run", "create"}), "signed", "key-9")
        calls(policy).call(signer, body("count"))
        assert policy.asked[0].request["signer"] == "key-9"
        assert {r.fields.get("signer") for r in kept.records() if r.kind != "end"} == {"key-9"}

    def test_what_is_denied_builds_nothing(self, calls, pipeline, kept):
        made = []
        pipeline.build = made.append
        with pytest.raises(PolicyDenied):
            calls(Says(Decision(False))).call(ALICE, body("count"))
        assert made == [] and kept.kinds() == ["denial"]

    def test_another_bundle_than_is_expected_is_refused(self, calls, kept):
        with pytest.raises(PolicyDenied):
            calls(allowing()).call(ALICE, body("count", bundle="sha256:" + "b" * 64))
        assert kept.kinds() == ["denial"]

    def test_a_sandbox_that_cannot_be_made_begins_nothing(self, calls, kept):
        with pytest.raises(Refused):
            calls().call(ALICE, body("strong"))
        assert kept.kinds() == ["admission", "denial"]


class TestInASandboxThatIsThere:
    @pytest.fixture
    def handle(self, pipeline):
        return pipeline.open(ALICE, SandboxSpec(isolation=NONE, backend="host"))

    def test_it_stays(self, calls, handle, pipeline):
        view = calls(handle=handle).call(ALICE, body("echo", sandbox=handle.id))
        assert view.sandbox.id == handle.id
        assert handle.id in pipeline.manager._handles

    def test_how_one_would_be_made_is_not_left_out_in_silence(self, calls, handle, kept):
        wanted = CallBody("test.echo.v1", {}, handle.id, SandboxBody(memory="64M"))
        with pytest.raises(InvalidInput, match="leave out one of the two"):
            calls(handle=handle).call(ALICE, wanted)
        assert kept.kinds() == []

    def test_it_must_have_the_wall_that_the_capability_needs(self, calls, handle):
        with pytest.raises(Refused, match="needs a wall of level microvm"):
            calls(handle=handle).call(ALICE, body("strong", sandbox=handle.id))

    @pytest.mark.parametrize(
        "obligations",
        [
            {"level": IsolationLevel.MICROVM},
            {"limits": Limits(memory=1024)},
        ],
    )
    def test_it_must_have_what_the_policy_obliges_to(self, calls, handle, kept, obligations):
        with pytest.raises(PolicyDenied):
            calls(allowing(**obligations), handle).call(ALICE, body("echo", sandbox=handle.id))
        assert kept.kinds() == ["admission", "denial"]


class TestObligations:
    def test_of_time_and_output_hold_for_every_command_of_it(self, calls):
        def much(call, inside):
            wide = ExecRequest(argv=("yes",), output_limit=1 << 30)
            end = inside.execute(wide, b"", call.emit)
            return Outcome({"length": len(end.stdout), "timeout": call.timeout}, end)

        policy = allowing(limits=Limits(output=1000, timeout=30.0))
        view = calls(policy, much=(much, None)).call(ALICE, body("much", timeout_ms=60_000))
        assert view.value == {"length": 1000, "timeout": 30.0}
        assert view.cause.code is CauseCode.OUTPUT_LIMIT and view.status == "failed"

    def test_of_a_level_make_the_sandbox_stronger_or_it_is_not_made(self, calls):
        with pytest.raises(Refused):
            calls(allowing(level=IsolationLevel.MICROVM)).call(ALICE, body("count"))

    def test_of_no_network_hold_for_what_acts_in_the_daemon(self, calls, kept):
        with pytest.raises(PolicyDenied, match="no network"):
            calls(allowing(no_network=True)).call(ALICE, body("fetch"))
        assert kept.kinds() == ["admission", "denial"]


class TestInTheDaemonItself:
    def test_nothing_is_built(self, calls, pipeline, records, key):
        made = []
        pipeline.build = made.append
        view = calls().call(ALICE, body("fetch", words="four"))
        assert made == [] and view.sandbox is None and view.enforcement == {}
        said = verify(records.get(view.receipt), key.public_pem()).predicate.execution
        assert (said.sandbox, said.backend, said.level) == ("", "", "")

    def test_there_is_no_sandbox_to_be_had(self, calls):
        def sly(call, inside):
            return Outcome({"found": inside.files.read("/etc/passwd")})

        needs = Needs(level=NONE, sandbox=False)
        with pytest.raises(AgentdError, match="no sandbox to use 'files'"):
            calls(sly=(sly, needs)).call(ALICE, body("sly"))


def test_no_value_of_an_environment_is_written_down(calls, kept, records):
    def leaky(call, inside):
        raise CallFailed("odd", f"the environment is {call.parameters['env']}")

    with pytest.raises(CallFailed):
        calls(leaky=(leaky, None)).call(ALICE, body("leaky", env={"TOKEN": "t0psecret"}))
    raw = kept.raw()
    assert b"t0psecret" not in raw and b"the environment is" in raw
