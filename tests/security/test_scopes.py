"""Threat: a scope that one door asks for is not the one that another asks for.

Control: one table says which scope a call needs, to the daemon and to the shipped policies.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.security.daemons import Answer, Daemon, fixture

from agentd.capability.registry import Registry
from agentd.daemon.admission import acts
from agentd.policy.scopes import OTHERS, scope_of, table

PAGE = (Path(__file__).resolve().parents[2] / "docs/capabilities.md").read_text()
ALL = ("run", "create", "files", "read", "ports", "snapshot", "egress")
NAMES = [capability.about.name for capability in Registry().all().capabilities]

daemon = fixture()


@pytest.fixture(scope="module")
def box(daemon: Daemon) -> str:
    return daemon.sandbox(daemon.key("bob"))


def test_the_table_has_all_that_is_judged() -> None:
    assert set(table()) == {*NAMES, *acts.OPERATIONS}
    assert set(table().values()) <= set(ALL)
    assert scope_of("acme.weather.v1") == OTHERS


def test_the_page_has_the_table() -> None:
    section = PAGE.partition("### Scopes")[2].partition("\n## ")[0]
    found = {}
    for scope, names in re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE):
        found |= dict.fromkeys(re.findall(r"`([\w.]+)`", names), scope)
    assert found == {name: scope_of(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_daemon_and_explain_want_the_same_scope(daemon: Daemon, box: str, name: str) -> None:
    examples = Registry().get(name).about.examples
    parameters = dict(examples[0].parameters)
    others = tuple(scope for scope in ALL if scope != scope_of(name))
    lacking = daemon.call(name, parameters, sandbox=box, key=daemon.key("bob", *others))
    assert lacking.code == "forbidden" and repr(scope_of(name)) in lacking.json["message"]
    enough = daemon.call(name, parameters, sandbox=box, key=daemon.key("bob", scope_of(name)))
    assert enough.code != "forbidden", enough.body
    for scopes, decision in ((others, "denied"), ((scope_of(name),), "allowed")):
        words = ("--bundle", "permissive", "--as", "bob", "--scopes", ",".join(scopes))
        said = daemon.cli(
            "policy", "explain", *words, "--call", name, "--params", json.dumps(parameters)
        )
        assert f"decision  {decision}" in said.stdout.decode(), said
    shown = daemon.cli("capability", "show", name, "--json")
    assert json.loads(shown.stdout)["scope"] == scope_of(name)


# What REST does is judged as these: what it asks for is what a call of them does.
DOORS: dict[str, Callable[[str], tuple[str, str, object]]] = {
    acts.SHELL: lambda box: ("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "true"}),
    acts.READ: lambda box: ("GET", f"/v1/sandboxes/{box}/files?path=/workspace/a", None),
    acts.LIST: lambda box: ("GET", f"/v1/sandboxes/{box}/files/list?path=/workspace", None),
    acts.WRITE: lambda box: ("PUT", f"/v1/sandboxes/{box}/files?path=/workspace/a", b"x"),
    acts.CREATE: lambda _: ("POST", "/v1/sandboxes", {}),
    acts.SNAPSHOT: lambda box: ("POST", f"/v1/sandboxes/{box}/snapshot", None),
    acts.FORK: lambda box: ("POST", f"/v1/sandboxes/{box}/fork", {"count": 1}),
    acts.NETWORK: lambda box: ("PUT", f"/v1/sandboxes/{box}/network", {"net": ["pypi"]}),
    acts.PORT: lambda box: ("GET", f"/v1/sandboxes/{box}/ports/8000/", None),
}


@pytest.mark.parametrize("act", DOORS)
def test_rest_wants_the_scope_of_the_act_that_it_is_judged_as(
    daemon: Daemon, box: str, act: str
) -> None:
    others = tuple(scope for scope in ALL if scope != scope_of(act))
    refused = _ask(daemon, act, box, others)
    assert refused.status == 403 and repr(scope_of(act)) in refused.json["message"], refused.body
    assert "lacks the scope" not in _ask(daemon, act, box, (scope_of(act),)).body.decode()


def _ask(daemon: Daemon, act: str, box: str, scopes: tuple[str, ...]) -> Answer:
    method, path, body = DOORS[act](box)
    return daemon.ask(method, path, body, key=daemon.key("bob", *scopes))
