import os
from collections.abc import Callable
from typing import Any

import pytest

from agentd.model.errors import Refused
from agentd.model.limits import Limits
from agentd.sandbox.backends import cgroups
from agentd.sandbox.backends.limits import with_defaults


class FakeHierarchy:
    """Remembers what it was asked; makes nothing."""

    version = 1

    def __init__(self, names: list[str] | None = None, controllers: str = "memory cpu pids"):
        self.names = names or []
        self.controllers = frozenset(controllers.split())
        self.reaped: list[str] = []
        self.made: list[tuple[str, dict[str, Any]]] = []

    def blockers(self) -> list[str]:
        return []

    def stale(self, prefix: str) -> list[str]:
        return [name for name in self.names if name.startswith(prefix)]

    def reap(self, name: str) -> None:
        self.reaped.append(name)

    def create(self, name: str, **limits: Any) -> str:
        self.made.append((name, limits))
        return "group"


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    return lambda hierarchy: monkeypatch.setattr(cgroups, "_hierarchy", hierarchy)


def test_a_name_tells_its_owner() -> None:
    name = cgroups.group_name()
    match = cgroups._NAME.match(name)
    assert match
    assert int(match[1]) == os.getpid()
    assert int(match[2]) == cgroups._start_time(os.getpid()) > 0
    assert name != cgroups.group_name()


def test_groups_of_the_dead_are_reaped_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    me, started = os.getpid(), cgroups._start_time(os.getpid())
    dead = 4194304  # above PID_MAX_LIMIT: never a process
    ours = f"sbx-{me}-{started}-aa"
    names = [
        ours,
        f"sbx-{me}-{started + 1}-bb",  # our number, another's birth: the pid was used again
        f"sbx-{dead}-5-cc",
        "sbx-strange",
        "sbx-1-2-3-4",
        f"other-{dead}-5-dd",
    ]
    hierarchy = FakeHierarchy(names)
    monkeypatch.setattr(cgroups, "_hierarchy", None)
    monkeypatch.setattr(cgroups.cgroup, "detect", lambda: hierarchy)
    assert cgroups.own_hierarchy() is hierarchy
    assert hierarchy.reaped == [f"sbx-{me}-{started + 1}-bb", f"sbx-{dead}-5-cc"]
    cgroups.own_hierarchy()
    assert len(hierarchy.reaped) == 2, "looked up once"


def test_no_hierarchy_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_hierarchy", None)
    monkeypatch.setattr(cgroups.cgroup, "detect", lambda: None)
    group, why = cgroups.make_group(Limits(), with_defaults(Limits()))
    assert group is None
    assert "no memory" in why


@pytest.mark.parametrize("limit", [{"memory": 1 << 20}, {"cpus": 0.5}])
def test_what_was_asked_for_and_cannot_be_held_is_refused(
    use: Callable[[object], None], limit: dict[str, Any]
) -> None:
    asked = Limits(**limit)
    for hierarchy in ("not writable by uid 7", FakeHierarchy(controllers="pids")):
        use(hierarchy)
        with pytest.raises(Refused) as caught:
            cgroups.make_group(asked, with_defaults(asked))
        assert f"--{next(iter(limit))}" in caught.value.message
        assert caught.value.remediation
    assert "7" in str(cgroups._refused("memory", "not writable by uid 7"))


def test_processes_are_refused_where_only_a_group_could_hold_them(
    use: Callable[[object], None],
) -> None:
    use("no hierarchy")
    asked = Limits(pids=5)
    assert cgroups.make_group(asked, with_defaults(asked)) == (None, "no hierarchy")
    with pytest.raises(Refused, match="--pids"):
        cgroups.make_group(asked, with_defaults(asked), needed=("memory", "cpus", "pids"))


def test_a_group_gets_the_limits(use: Callable[[object], None]) -> None:
    hierarchy = FakeHierarchy()
    use(hierarchy)
    asked = Limits(cpus=0.5)
    group, why = cgroups.make_group(asked, with_defaults(asked))
    assert (group, why) == ("group", "")
    ((name, limits),) = hierarchy.made
    assert name.startswith(f"sbx-{os.getpid()}-")
    assert (limits["memory"], limits["pids"], limits["cpus"]) == (1 << 30, 512, 0.5)
