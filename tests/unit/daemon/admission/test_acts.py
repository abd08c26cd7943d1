"""What REST and the SDK ask for is named as policies name it."""

import json
from pathlib import Path

import pytest
from tests.unit.daemon.known import ALICE, handle_of

import agentd.policy
from agentd.capability.registry import BUILTIN, Registry
from agentd.daemon.admission import acts
from agentd.daemon.admission.acts import Place, asked
from agentd.model import context
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.mount import Mount, MountMode
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.policy.scopes import scope_of

CALLS = Path(agentd.policy.__file__).parent / "bundles/common/calls.json"


def test_a_command_is_a_call_of_shell_exec():
    request = ExecRequest(
        argv=("make", "-j2"), cwd="/workspace/a", env={"TOKEN": "t0psecret"}, timeout=1.5
    )
    found = acts.command(ALICE, Place.of(handle_of(), {"team": "red"}), request)
    assert found.name == "shell.exec.v1"
    assert found.parameters == {
        "command": "make",
        "args": ["-j2"],
        "cwd": "/workspace/a",
        "env": {"TOKEN": "t0psecret"},
        "timeout_ms": 1500,
    }
    assert found.executes
    assert found.needs == Registry().get("shell.exec.v1").about.needs
    assert (found.place.id, found.place.labels) == ("sbx-1", {"team": "red"})
    assert "t0psecret" not in str(asked(found, 0.0))


def test_one_without_a_time_asks_for_none():
    found = acts.command(ALICE, Place.of(handle_of(), {}), ExecRequest(argv=("true",)))
    assert "timeout_ms" not in found.parameters and found.parameters["args"] == []


def test_its_parameters_are_some_that_shell_exec_knows():
    """A policy that reads a parameter of the one finds it in the other."""
    known = Registry().get("shell.exec.v1").about.schema["properties"]
    request = ExecRequest(argv=("make", "x"), env={"A": "1"}, timeout=1.0)
    assert set(acts.command(ALICE, Place.of(handle_of(), {}), request).parameters) <= set(known)


def test_the_id_is_the_requests_or_a_new_one_each_time():
    request = ExecRequest(argv=("true",))
    with context.request("req-9"):
        assert acts.command(ALICE, Place.of(handle_of(), {}), request).request == "req-9"
    ids = {acts.command(ALICE, Place.of(handle_of(), {}), request).request for _ in range(2)}
    assert len(ids) == 2 and "" not in ids


def test_a_creation_says_all_that_is_asked_for():
    spec = SandboxSpec(
        isolation=IsolationLevel.MICROVM,
        backend="qemu",
        net="host",
        user="root",
        mounts=(Mount("/data", "/in", MountMode.RO),),
        limits=Limits(memory=1024, timeout=2.0),
        env={"TOKEN": "t0psecret"},
    )
    found = acts.creation(ALICE, spec, {"team": "red"})
    assert found.name == "sandbox.create.v1"
    assert found.parameters == {
        "memory": 1024,
        "timeout": 2.0,
        "isolation": "microvm",
        "backend": "qemu",
        "snapshot": "",
        "runtime": None,
        "image": spec.image,
        "image_digest": "",
        "template": "",
        "net": "host",
        "egress": [],
        "secrets": [],
        "packages": [],
        "user": "root",
        "writable": False,
        "mounts": ["/data:/in:ro"],
    }
    assert not found.executes
    assert found.place.id == "" and found.place.labels == {"team": "red"}


@pytest.mark.parametrize("name", [acts.READ, acts.WRITE, acts.LIST, acts.PORT, acts.SNAPSHOT])
def test_an_operation_has_its_parameters_and_whether_it_writes(name):
    found = acts.operation(ALICE, name, handle_of(), {}, path="/workspace/a")
    assert (found.name, found.parameters) == (name, {"path": "/workspace/a"})
    assert found.needs.writes is (name == acts.WRITE)
    assert found.executes is (name == acts.WRITE)
    assert found.receipt is (name in (acts.WRITE, acts.SNAPSHOT))


def test_every_act_is_one_that_the_shipped_policies_know():
    known = json.loads(CALLS.read_text())["calls"]
    ours = {acts.SHELL, acts.CREATE, acts.FORK, acts.SNAPSHOT, acts.PORT}
    assert ours | {acts.READ, acts.WRITE, acts.LIST} <= set(known)
    assert set(BUILTIN) <= set(known)


@pytest.mark.parametrize("name", BUILTIN)
def test_no_capability_wants_less_of_its_caller_than_the_shipped_policies_do(name):
    """Without a policy the scopes are all there is."""
    weak = ("read", "files", "run")
    policys = json.loads(CALLS.read_text())["calls"][name]["scope"]
    assert weak.index(scope_of(name)) >= weak.index(policys)
    if Registry().get(name).about.needs.writes:
        assert scope_of(name) != "read"
