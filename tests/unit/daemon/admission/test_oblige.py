"""Obligations hold: what is made gets stronger and smaller; what is there is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.daemon.admission import oblige
from agentd.model.decision import Obligations
from agentd.model.errors import PolicyDenied
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import DEFAULTS, Limits
from agentd.model.spec import ExecRequest, SandboxSpec

NAMESPACE, MICROVM = IsolationLevel.NAMESPACE, IsolationLevel.MICROVM
counts = st.none() | st.integers(1, 1 << 40)


def test_a_new_sandbox_gets_the_stronger_wall_of_the_two():
    weak, strong = SandboxSpec(isolation=NAMESPACE), SandboxSpec(isolation=MICROVM)
    for spec in (weak, strong):
        made = oblige.new_sandbox(spec, Obligations(level=MICROVM))
        assert made.isolation is MICROVM
    assert oblige.new_sandbox(strong, Obligations(level=NAMESPACE)).isolation is MICROVM
    assert oblige.new_sandbox(weak, Obligations()) == weak


@given(counts, counts)
def test_a_new_sandboxs_limit_is_the_lower_of_what_is_asked_and_what_is_allowed(asked, most):
    spec = SandboxSpec(limits=Limits(memory=asked))
    made = oblige.new_sandbox(spec, Obligations(limits=Limits(memory=most))).limits.memory
    if most is None:
        assert made == asked
    else:
        assert made == min(DEFAULTS.memory if asked is None else asked, most)


def test_a_maximum_is_no_default():
    most = Limits(memory=8 << 30, cpus=2.0, pids=4096, disk=16 << 30, open_files=65536, timeout=9.0)
    made = oblige.new_sandbox(SandboxSpec(), Obligations(limits=most)).limits
    assert (made.memory, made.pids, made.disk) == (DEFAULTS.memory, DEFAULTS.pids, DEFAULTS.disk)
    assert made.open_files <= DEFAULTS.open_files
    # Without a bound of its own there is none that would be less.
    assert (made.cpus, made.timeout, made.output) == (2.0, 9.0, None)


def test_what_memory_is_allowed_bounds_the_usual_disk_too():
    most = Limits(memory=256 << 20, disk=1 << 30)
    made = oblige.new_sandbox(SandboxSpec(), Obligations(limits=most)).limits
    assert (made.memory, made.disk) == (256 << 20, 128 << 20)


def test_a_network_that_must_not_be_is_refused_and_not_left_out():
    obligations = Obligations(no_network=True)
    with pytest.raises(PolicyDenied, match="no network"):
        oblige.new_sandbox(SandboxSpec(net="host"), obligations)
    with pytest.raises(PolicyDenied, match="no network"):
        oblige.existing_sandbox(SandboxSpec(net="host"), MICROVM, obligations)
    assert oblige.new_sandbox(SandboxSpec(net="none"), obligations).net == "none"


def test_a_sandbox_that_is_there_must_have_the_wall():
    oblige.existing_sandbox(SandboxSpec(), MICROVM, Obligations(level=MICROVM))
    with pytest.raises(PolicyDenied, match="level microvm"):
        oblige.existing_sandbox(SandboxSpec(), NAMESPACE, Obligations(level=MICROVM))


@pytest.mark.parametrize("held", [None, 2048])
def test_a_sandbox_that_is_there_must_have_the_limits(held):
    obligations = Obligations(limits=Limits(memory=1024))
    with pytest.raises(PolicyDenied, match="memory"):
        oblige.existing_sandbox(SandboxSpec(limits=Limits(memory=held)), MICROVM, obligations)
    oblige.existing_sandbox(SandboxSpec(limits=Limits(memory=1024)), MICROVM, obligations)


def test_limits_of_a_command_are_held_by_the_command():
    obligations = Obligations(limits=Limits(timeout=5.0, output=100))
    oblige.existing_sandbox(SandboxSpec(), NAMESPACE, obligations)
    request = oblige.command(ExecRequest(argv=("x",), timeout=9.0), obligations)
    assert (request.timeout, request.output_limit) == (5.0, 100)
    assert oblige.command(ExecRequest(argv=("x",), timeout=2.0), obligations).timeout == 2.0
