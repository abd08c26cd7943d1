from ipaddress import ip_address
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from agentd.daemon.config import schema
from agentd.daemon.config.schema import (
    Config,
    EgressSettings,
    LimitBounds,
    LimitSettings,
    OwnHost,
    SandboxSettings,
)
from agentd.daemon.config.values import (
    AddressAndPort,
    Duration,
    FilePath,
    Grant,
    HostName,
    Scope,
    Size,
)
from agentd.daemon.sandboxes import bodies
from agentd.egress.compile import compile_table
from agentd.egress.table import EgressTable as Table
from agentd.model.api import SandboxBody
from agentd.model.errors import AgentdError, Forbidden, InvalidInput, Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.principal import ORDINARY, SCOPES, Principal

PEER = Principal("uid:1", frozenset({"create"}), "peer")
SHOWN = Principal("ci", frozenset({"create", "mount"}), "key")
NETWORKS = ("none", "host", "restricted")
KEY = Principal("ci", frozenset({"create"}), "key")


def config(**fields: Any) -> Config:
    return Config(sandbox=SandboxSettings(**fields.pop("sandbox", {})), **fields)


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
    with pytest.raises(Refused, match=r"sandbox\.minimum"):  # in words that fit what was asked
        bodies.sandbox_spec(KEY, SandboxBody(isolation="none", backend="host"), strict)


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
    most = LimitBounds(max=LimitSettings(memory=Size(1 << 30), timeout=Duration(3600)))
    rules = config(sandbox={"backends": ("linux",)}, limits=most)
    with pytest.raises(Refused, match=said):
        bodies.sandbox_spec(KEY, body, rules)


def test_where_nothing_is_asked_the_defaults_hold_or_else_the_most() -> None:
    limits = LimitBounds(
        default=LimitSettings(memory=Size(128 << 20)),
        max=LimitSettings(memory=Size(1 << 30), timeout=Duration(60)),
    )
    spec = bodies.sandbox_spec(KEY, SandboxBody(), config(limits=limits))
    assert (spec.limits.memory, spec.limits.timeout) == (128 << 20, 60.0)


def test_mounts_are_for_callers_with_the_scope_and_beneath_what_may_be_shown(
    tmp_path: Path,
) -> None:
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    for folder in (shown, hidden):
        folder.mkdir()
    (shown / "way-out").symlink_to(hidden)
    rules = config(sandbox={"mounts": (FilePath(str(shown)),)})
    ok = SandboxBody(workspace=f"{shown}:ro")
    assert bodies.sandbox_spec(SHOWN, ok, rules).mounts[0].source == str(shown)
    for who in (KEY, PEER):
        with pytest.raises(Forbidden, match="scope 'mount'"):
            bodies.sandbox_spec(who, ok, rules)
    for path in (hidden, shown / "way-out", shown / ".." / "hidden", f"{shown}-and-more", "/etc"):
        with pytest.raises(Refused, match="may not be mounted"):
            bodies.sandbox_spec(SHOWN, SandboxBody(workspace=f"{path}:ro"), rules)
    with pytest.raises(Refused):
        bodies.sandbox_spec(SHOWN, ok, config())


def test_what_is_mounted_is_the_path_that_was_judged(tmp_path: Path) -> None:
    """A link in it is the caller's to change a moment later."""
    (tmp_path / "shown" / "folder").mkdir(parents=True)
    (tmp_path / "shown" / "link").symlink_to("folder")
    rules = config(sandbox={"mounts": (FilePath(str(tmp_path / "shown")),)})
    spec = bodies.sandbox_spec(SHOWN, SandboxBody(workspace=f"{tmp_path}/shown/link:ro"), rules)
    assert spec.mounts[0].source == f"{tmp_path}/shown/folder"


def test_a_folder_that_may_be_shown_is_not_another_one_later(tmp_path: Path) -> None:
    """Whoever may write beside it could make it a link to any other."""
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    for folder in (shown, hidden):
        folder.mkdir()
    rules = config(sandbox={"mounts": (FilePath(str(shown)),)})
    bodies.sandbox_spec(SHOWN, SandboxBody(workspace=str(shown)), rules)
    shown.rmdir()
    shown.symlink_to(hidden)
    with pytest.raises(Refused, match="may not be mounted"):
        bodies.sandbox_spec(SHOWN, SandboxBody(workspace=str(shown)), rules)


@pytest.mark.parametrize(
    ("asked", "scopes"),
    [
        ({"net": "host"}, ("net",)),
        ({"net": ("pypi",)}, ("egress",)),
        ({"workspace": "/tmp"}, ("mount",)),
    ],
)
def test_what_reaches_the_host_needs_a_scope_of_its_own(
    asked: dict[str, Any], scopes: tuple[str, ...]
) -> None:
    rules = config(sandbox={"networks": NETWORKS, "mounts": (FilePath("/"),)})
    body = SandboxBody(**asked)
    for missing in scopes:
        held = frozenset({*ORDINARY, "approve", "keys", "mount", "net", "egress"}) - {missing}
        with pytest.raises(Forbidden, match=f"scope '{missing}'"):
            bodies.sandbox_spec(Principal("ci", held, "peer"), body, rules)
    bodies.sandbox_spec(Principal("ci", frozenset({"create", *scopes}), "key"), body, rules)
    bodies.sandbox_spec(Principal("root", frozenset({"admin"}), "peer"), body, rules)


ROOT = Principal("root", frozenset({"admin"}), "peer")


def granted(*rules: str, allow: tuple[str, ...] = ("public",)) -> Table:
    """What a request for these rules has where the configuration allows those."""
    said = config(
        sandbox={"networks": NETWORKS}, egress=EgressSettings(allow=tuple(map(Grant.of, allow)))
    )
    spec = bodies.sandbox_spec(ROOT, SandboxBody(net=rules), said)
    assert spec.net == "restricted" and spec.egress == rules
    return Table(compile_table(spec.egress, spec.egress_bounds))


def test_rules_are_granted_within_what_the_configuration_allows() -> None:
    private = ip_address("10.1.2.3")
    usual = granted("db.example.com", "8.8.8.8:53")
    assert usual.of_address(ip_address("8.8.8.8"), 53).allowed
    named = usual.of_name("db.example.com", 443)
    assert named.allowed and not usual.of_answer(named, private, 443).allowed
    told = granted("db.example.com:5432", allow=("pypi", "*.example.com", "db.example.com:5432"))
    named = told.of_name("db.example.com", 5432)
    assert told.of_answer(named, private, 5432).allowed  # the operator named that very host
    both = granted("db.example.com:5432", allow=("public", "private"))
    named = both.of_name("db.example.com", 5432)
    assert both.of_answer(named, private, 5432).allowed
    kept = granted("a.example.com", allow=("public", "!a.example.com:80"))
    assert not kept.of_name("a.example.com", 80).allowed
    assert kept.of_name("a.example.com", 443).allowed


@pytest.mark.parametrize(
    ("rule", "allow"),
    [
        ("pypi", ()),
        ("pypi", ("npm",)),
        ("pypi", ("pypi.org:443",)),
        ("example.com", ("*.example.com",)),
        ("*.example.com", ("a.example.com:*",)),
        ("a.example.com:*", ("*.example.com",)),
        ("a.example.com", ("a.example.com:443",)),
        ("10.1.2.3:5432", ("public",)),
        ("10.0.0.0/8:*", ("public", "10.1.0.0/16:*")),
        ("8.8.8.8:53", ("pypi",)),
        ("8.8.8.8:53", ("private",)),
        ("*.example.com", ("private",)),
        ("pypi", ("private",)),
        ("0.0.0.0/0:443", ("private",)),
    ],
)
def test_more_than_the_configuration_allows_is_refused(rule: str, allow: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as raised:
        granted(rule, allow=allow)
    assert rule in raised.value.message and "egress.allow" in raised.value.remediation


@pytest.mark.parametrize(
    ("rule", "allow"),
    [
        ("pypi", ("pypi.org:443", "files.pythonhosted.org:443")),
        ("a.example.com", ("a.example.com:443", "a.example.com:80")),
        ("*.b.example.com", ("*.example.com",)),
        ("10.1.2.3:5432", ("public", "10.1.0.0/16:*")),
        ("!pypi", ()),
        ("10.1.2.3:5432", ("private",)),
        ("db.example.com:5432", ("private",)),
    ],
)
def test_as_much_as_the_configuration_allows_is_granted(rule: str, allow: tuple[str, ...]) -> None:
    granted(rule, allow=allow)


def test_the_operator_s_own_host_is_for_who_is_granted_it_by_name() -> None:
    own = (OwnHost(name=HostName("db.my.internal"), address=AddressAndPort("127.0.0.1", 5432)),)
    for rule, allow, found in (
        ("db.my.internal:5432", ("db.my.internal:5432",), ("127.0.0.1", 5432)),
        ("db.my.internal:5432", ("*.my.internal:*",), None),
        ("*.my.internal:5432", ("public", "db.my.internal:5432"), None),
    ):
        egress = EgressSettings(allow=tuple(map(Grant.of, allow)), host=own)
        said = config(sandbox={"networks": NETWORKS}, egress=egress)
        spec = bodies.sandbox_spec(ROOT, SandboxBody(net=(rule,)), said)
        table = Table(compile_table(spec.egress, spec.egress_bounds))
        assert table.static("db.my.internal") == found


def test_a_snapshot_s_rules_are_granted_anew_and_may_be_others() -> None:
    rules = config(sandbox={"networks": NETWORKS})
    kept = bodies.sandbox_spec(ROOT, SandboxBody(net=("pypi",)), rules)
    assert bodies.restored_spec(ROOT, kept, SandboxBody(), rules).egress == ("pypi",)
    other = bodies.restored_spec(ROOT, kept, SandboxBody(net="npm,crates"), rules)
    assert other.egress == ("npm", "crates")
    with pytest.raises(InvalidInput):
        bodies.restored_spec(ROOT, kept, SandboxBody(net="host"), rules)
    less = config(sandbox={"networks": NETWORKS}, egress=EgressSettings(allow=()))
    with pytest.raises(Refused, match="'pypi' is not allowed here"):
        bodies.restored_spec(ROOT, kept, SandboxBody(), less)
    none = bodies.sandbox_spec(ROOT, SandboxBody(), rules)
    with pytest.raises(InvalidInput, match="net"):
        bodies.restored_spec(ROOT, none, SandboxBody(net=("pypi",)), rules)


def test_the_lists_of_scopes_agree() -> None:
    assert set(get_args(Scope)) == set(SCOPES)
    assert schema.ORDINARY == ORDINARY


@pytest.mark.parametrize("body", [{"memory": "lots"}, {"cpus": -1.0}, {"env": {"": "x"}}])
def test_a_malformed_value_is_an_invalid_input(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        bodies.sandbox_spec(KEY, SandboxBody(**body), config())


def test_a_snapshot_s_spec_takes_new_bounds_of_commands_and_no_more() -> None:
    kept = bodies.sandbox_spec(KEY, SandboxBody(memory="256M"), config())
    body = SandboxBody(timeout="3s", env={"B": "2"})
    spec = bodies.restored_spec(KEY, kept, body, config())
    assert (spec.limits.memory, spec.limits.timeout, spec.env) == (256 << 20, 3.0, {"B": "2"})


def test_a_snapshot_brings_nothing_that_its_caller_may_not_ask_for(tmp_path: Path) -> None:
    rules = config(sandbox={"networks": ("none", "host"), "mounts": (FilePath(str(tmp_path)),)})
    admin = Principal("root", frozenset({"admin"}), "peer")
    for body in (SandboxBody(net="host"), SandboxBody(workspace=f"{tmp_path}:ro")):
        kept = bodies.sandbox_spec(admin, body, rules)
        with pytest.raises(Forbidden):
            bodies.restored_spec(KEY, kept, SandboxBody(), rules)
    with pytest.raises(Refused):
        bodies.restored_spec(admin, kept, SandboxBody(), config())


def test_an_unknown_field_is_refused_before_all_that() -> None:
    with pytest.raises((msgspec.ValidationError, AgentdError), match="memroy"):
        msgspec.json.decode(b'{"memroy": "1G"}', type=SandboxBody)
