from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.daemon.config.schema import Bounds, Config, LimitBounds, Sandbox
from agentd.daemon.config.values import Duration, FilePath, Size
from agentd.daemon.service import bodies
from agentd.model.api import SandboxBody
from agentd.model.errors import AgentdError, Forbidden, InvalidInput, Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.principal import Principal

PEER = Principal("uid:1", frozenset({"create"}), "peer")
KEY = Principal("ci", frozenset({"create"}), "key")


def config(**fields: Any) -> Config:
    return Config(sandbox=Sandbox(**fields.pop("sandbox", {})), **fields)


def test_a_body_becomes_the_spec_that_the_sdk_would_make() -> None:
    body = SandboxBody(memory="256M", timeout="2s", env={"A": "1"}, cpus=0.5)
    spec = bodies.sandbox_spec(KEY, body, config())
    assert (spec.limits.memory, spec.limits.timeout, spec.limits.cpus) == (256 << 20, 2.0, 0.5)
    assert spec.env == {"A": "1"}
    assert spec.isolation is IsolationLevel.NAMESPACE


def test_no_request_gets_less_than_the_least_level() -> None:
    strict = config(sandbox={"minimum": "microvm"})
    for asked in (None, "none", "namespace"):
        body = SandboxBody(isolation=asked)
        assert bodies.sandbox_spec(KEY, body, strict).isolation is IsolationLevel.MICROVM
    named = bodies.sandbox_spec(KEY, SandboxBody(backend="host"), strict)
    assert named.isolation is IsolationLevel.MICROVM  # the chooser then refuses the backend


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (SandboxBody(net="host"), "network host"),
        (SandboxBody(backend="host"), "backend host"),
        (SandboxBody(memory="2G"), "memory"),
        (SandboxBody(timeout="2h"), "timeout"),
    ],
)
def test_what_the_configuration_does_not_allow_is_refused(body: SandboxBody, said: str) -> None:
    most = LimitBounds(max=Bounds(memory=Size(1 << 30), timeout=Duration(3600)))
    rules = config(sandbox={"backends": ("linux",)}, limits=most)
    with pytest.raises(Refused, match=said):
        bodies.sandbox_spec(KEY, body, rules)


def test_where_nothing_is_asked_the_defaults_hold_or_else_the_most() -> None:
    limits = LimitBounds(
        default=Bounds(memory=Size(128 << 20)),
        max=Bounds(memory=Size(1 << 30), timeout=Duration(60)),
    )
    spec = bodies.sandbox_spec(KEY, SandboxBody(), config(limits=limits))
    assert (spec.limits.memory, spec.limits.timeout) == (128 << 20, 60.0)


def test_mounts_are_for_callers_on_the_socket_and_beneath_what_may_be_shown(
    tmp_path: Path,
) -> None:
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    for folder in (shown, hidden):
        folder.mkdir()
    (shown / "way-out").symlink_to(hidden)
    rules = config(sandbox={"mounts": (FilePath(str(shown)),)})
    ok = SandboxBody(workspace=f"{shown}:ro")
    assert bodies.sandbox_spec(PEER, ok, rules).mounts[0].source == str(shown)
    with pytest.raises(Forbidden, match="unix socket"):
        bodies.sandbox_spec(KEY, ok, rules)
    for path in (hidden, shown / "way-out", shown / ".." / "hidden", f"{shown}-and-more", "/etc"):
        with pytest.raises(Refused, match="may not be mounted"):
            bodies.sandbox_spec(PEER, SandboxBody(workspace=f"{path}:ro"), rules)
    with pytest.raises(Refused):
        bodies.sandbox_spec(PEER, ok, config())


@pytest.mark.parametrize("body", [{"memory": "lots"}, {"cpus": -1.0}, {"env": {"": "x"}}])
def test_a_malformed_value_is_an_invalid_input(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        bodies.sandbox_spec(KEY, SandboxBody(**body), config())


def test_a_snapshot_s_spec_takes_new_bounds_of_commands_and_no_more() -> None:
    kept = bodies.sandbox_spec(KEY, SandboxBody(memory="256M"), config())
    spec = bodies.restored_spec(kept, SandboxBody(timeout="3s", env={"B": "2"}))
    assert (spec.limits.memory, spec.limits.timeout, spec.env) == (256 << 20, 3.0, {"B": "2"})


def test_an_unknown_field_is_refused_before_all_that() -> None:
    with pytest.raises((msgspec.ValidationError, AgentdError), match="memroy"):
        msgspec.json.decode(b'{"memroy": "1G"}', type=SandboxBody)
