from types import SimpleNamespace

import pytest

from agentd.model.isolation import IsolationLevel
from agentd.sandbox import backends
from agentd.sandbox.abilities import FORK, FORWARDED, SNAPSHOT, methods, names
from agentd.sandbox.supervisor.server import Supervisor


def able(*names: str) -> SimpleNamespace:
    return SimpleNamespace(**dict.fromkeys(names, print))


def test_a_wall_has_an_ability_by_all_of_its_methods():
    assert names(able("pause", "changes", "apply", "snapshot", "fidelity")) == (
        "snapshot",
        "changes",
    )
    assert names(able("pause", "resume")) == ("pause",)
    assert SNAPSHOT.of(able("snapshot")) is None  # of what fidelity it does not say
    assert SNAPSHOT.of(None) is None


def test_what_a_later_version_can_is_left_out():
    assert [one.name for one in methods(("pause", "fly"))] == ["pause", "resume"]


def test_each_method_has_its_own_name_on_the_wire():
    forwarded = [method.name for ability in FORWARDED for method in ability.methods]
    assert len(set(forwarded)) == len(forwarded)
    supervisor = Supervisor()
    assert set(forwarded) < supervisor._operations.keys()
    supervisor.close()


@pytest.mark.parametrize("name", backends.BUILTIN)
def test_what_a_backend_says_is_in_the_table(name):
    known = {ability.name for ability in FORWARDED} | {FORK.name}
    assert backends.abilities(name) <= known
    assert (FORK.name in backends.abilities(name)) == hasattr(backends.load(name), "restore")


def make() -> SimpleNamespace:
    """A third party's entry point may be a function."""
    level = IsolationLevel.NAMESPACE
    return SimpleNamespace(name="made", level=level, images=True, abilities={"pause"}, restore=None)


def test_what_a_function_makes_says_what_it_can(monkeypatch):
    monkeypatch.setattr(backends, "_third_parties", lambda: {"made": f"{__name__}:make", "no": "x"})
    assert backends.images("made")
    assert backends.abilities("made") == {"pause", "fork"}
    assert "made" in backends.able("pause")
    assert not backends.images("no") and not backends.abilities("no")
