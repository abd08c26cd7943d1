"""The filter that is shown is the one that a report names."""

from pathlib import Path

import pytest

from agentd.client import build
from agentd.daemon.pipeline import Pipeline
from agentd.daemon.seccomp_profile import assembly, profile
from agentd.model.errors import InvalidInput, NotFound
from agentd.model.isolation import IsolationLevel
from agentd.sandbox.manager import Manager


@pytest.mark.parametrize("backend", ["landlock", "linux"])
@pytest.mark.parametrize("net", ["none", "host"])
def test_it_is_the_one_in_force(backend: str, net: str) -> None:
    manager = Manager()
    try:
        found = manager.backend(backend).probe()
        if not found.usable:
            pytest.skip("; ".join(blocker.what for blocker in found.blockers))
        spec = build.sandbox_spec(backend=backend, net=net, isolation="none")
        handle = Pipeline(manager).open("uid:0", spec)
        told = handle.enforcement["seccomp"].detail
        level = handle.level
    finally:
        manager.close()
    assert profile(level=level, net=net).label == told


def test_with_a_folder_to_write_it_is_the_one_in_force(tmp_path: Path) -> None:
    manager = Manager()
    try:
        if not manager.backend("linux").probe().usable:
            pytest.skip("linux is not usable here")
        spec = build.sandbox_spec(backend="linux", workspace=f"{tmp_path}:rw")
        handle = Pipeline(manager).open("uid:0", spec)
        told = handle.enforcement["seccomp"].detail
    finally:
        manager.close()
    assert profile(rw=True).label == told


def test_a_capability_says_level_and_network() -> None:
    found = profile("shell.exec.v1")
    assert (found.level, found.net, found.capability) == ("process", "none", "shell.exec.v1")
    assert any("inet" in rule.why or "no network" in rule.why for rule in found.rules)
    stronger = profile("shell.exec.v1", IsolationLevel.NAMESPACE)
    assert stronger.level == "namespace"


def test_every_rule_has_its_reason() -> None:
    for level in (IsolationLevel.PROCESS, IsolationLevel.NAMESPACE):
        for rule in profile(level=level).rules:
            assert rule.why
            assert rule.calls


def test_an_unknown_capability_is_told() -> None:
    with pytest.raises(NotFound, match=r"no capability 'shell\.exek\.v1'.*shell\.exec\.v1"):
        profile("shell.exek.v1")


@pytest.mark.parametrize("level", [IsolationLevel.NONE, IsolationLevel.MICROVM])
def test_a_level_without_a_filter_is_told(level: IsolationLevel) -> None:
    with pytest.raises(InvalidInput, match=level.label):
        profile(level=level)


def test_its_program_has_so_many_instructions() -> None:
    found = profile()
    assert len(assembly(found)) == found.instructions
