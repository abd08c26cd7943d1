"""What no call asks for passes the same policy, with the same obligations and records."""

import pytest
from tests.unit.daemon.known import ALICE, Says, allowing, handle_of

from agentd.audit import read
from agentd.audit.receipt import verify
from agentd.daemon.admission import acts
from agentd.model.decision import Decision
from agentd.model.errors import PolicyDenied
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.result import CauseCode
from agentd.model.spec import ExecRequest, SandboxSpec

MICROVM = IsolationLevel.MICROVM
MAKE = ExecRequest(argv=("make",), timeout=9.0)


def of(name, **parameters):
    return acts.operation(ALICE, name, handle_of(), {}, **parameters)


def test_a_sandbox_is_made_as_the_policy_obliges(gate, kept):
    policy = allowing(level=MICROVM, limits=Limits(memory=1024))
    asked = SandboxSpec(limits=Limits(memory=4096))
    made = gate(policy).sandbox(ALICE, asked, {"team": "red"})
    assert (made.isolation, made.limits.memory) == (MICROVM, 1024)
    assert policy.asked[0].capability["name"] == "sandbox.create.v1"
    assert policy.asked[0].sandbox["labels"] == {"team": "red"}
    assert kept.kinds() == ["admission"]


def test_without_obligations_it_stays_as_it_is_asked_for(gate):
    spec = SandboxSpec(net="host", limits=Limits(memory=4096))
    assert gate(allowing()).sandbox(ALICE, spec, {}) == spec


def test_a_network_that_must_not_be_is_refused_and_written_down(gate, kept):
    with pytest.raises(PolicyDenied, match="no network"):
        gate(allowing(no_network=True)).sandbox(ALICE, SandboxSpec(net="host"), {})
    admitted, denied = kept.records()
    assert (admitted.kind, denied.kind) == ("admission", "denial")
    assert "no network" in denied.fields["reasons"][0]


def test_a_command_gets_the_lower_bounds_and_a_record_of_its_begin(gate, kept):
    policy = allowing(limits=Limits(timeout=2.0, output=100))
    request, ending = gate(policy).command(ALICE, handle_of(), MAKE, {})
    assert (request.timeout, request.output_limit) == (2.0, 100)
    assert policy.asked[0].parameters["command"] == "make"
    admitted, begun = kept.records()
    assert (admitted.kind, begun.kind) == ("admission", "start")
    assert admitted.request == begun.request == ending.act.request
    assert (begun.sandbox, begun.capability) == ("sbx-1", "shell.exec.v1")


def test_the_begin_of_one_that_goes_on_without_us_is_on_disk(gate, kept):
    """It is acknowledged by then, and its end may be another daemon's to write."""
    request = ExecRequest(argv=("make",), tag="prc-1")
    for _ in range(20):
        _, ending = gate().command(ALICE, handle_of(), request, {})
        found = [r.kind for r in read.records(kept.folder) if r.request == ending.act.request]
        assert found == ["admission", "start"]


@pytest.mark.parametrize(
    ("obligations", "said"),
    [
        ({"level": MICROVM}, "level microvm"),
        ({"limits": Limits(memory=1)}, "memory"),
        ({"no_network": True}, "no network"),
    ],
)
def test_a_sandbox_that_is_less_than_what_must_hold_does_nothing(gate, kept, obligations, said):
    handle = handle_of(SandboxSpec(net="host"))
    made = gate(allowing(**obligations))
    for refused in (
        lambda: made.command(ALICE, handle, MAKE, {}),
        lambda: made.operation(acts.operation(ALICE, acts.READ, handle, {}, path="a"), handle),
        lambda: made.operation(acts.operation(ALICE, acts.FORK, handle, {}, count=2), handle),
    ):
        with pytest.raises(PolicyDenied, match=said):
            refused()
    assert kept.kinds() == ["admission", "denial"] * 3


def test_what_is_denied_does_not_begin(gate, kept):
    made = gate(Says(Decision(False, ("no",))))
    for refused in (
        lambda: made.sandbox(ALICE, SandboxSpec(), {}),
        lambda: made.command(ALICE, handle_of(), MAKE, {}),
        lambda: made.operation(of(acts.WRITE, path="a"), handle_of()),
        lambda: made.operation(of(acts.FORK, count=1), handle_of()),
    ):
        with pytest.raises(PolicyDenied):
            refused()
    assert kept.kinds() == ["denial"] * 4


def test_an_operation_is_asked_about_with_its_parameters(gate, kept):
    policy = allowing()
    gate(policy).operation(of(acts.PORT, port=8080), handle_of())
    gate(policy).operation(of(acts.FORK, count=3), handle_of())
    names = [(a.capability["name"], dict(a.parameters)) for a in policy.asked]
    assert names == [("sandbox.port.v1", {"port": 8080}), ("sandbox.fork.v1", {"count": 3})]
    assert kept.kinds() == ["admission", "admission"]


def test_its_end_has_a_receipt_that_names_the_wall(gate, kept, receipts, key):
    _, ending = gate(allowing()).command(ALICE, handle_of(), MAKE, {})
    ending.fail(None)
    said = verify(receipts.get(ending.act.request), key.public_pem()).predicate
    assert (said.execution.backend, said.execution.level) == ("linux", "namespace")
    assert said.execution.cause.code is CauseCode.CANCELLED
    assert set(said.execution.enforcement) == {"seccomp"}
    assert [r.position for r in kept.records() if r.kind == "end"] == [said.record]
