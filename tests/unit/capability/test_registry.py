import subprocess
import sys
import threading
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from agentd.capability.registry import (
    BUILTIN,
    ENTRY_POINTS,
    MAX_THIRD_PARTIES,
    Registry,
    check_name,
)
from agentd.model.capability import About, Outcome
from agentd.model.errors import InvalidInput, NotFound, Unavailable

SCHEMA = {"type": "object", "additionalProperties": False}


class Made:
    def __init__(self, name: str, schema: dict[str, Any] = SCHEMA) -> None:
        self.about = About(name, "a test's", schema)

    def run(self, call: object, inside: object) -> Outcome:
        return Outcome({})


def point(name: str, value: str) -> Any:
    return SimpleNamespace(name=name, value=value)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A third party's, as ``theirs``."""
    made = ModuleType("theirs")
    monkeypatch.setitem(sys.modules, "theirs", made)
    return made


@pytest.mark.parametrize("name", BUILTIN)
def test_a_built_in_one_is_what_it_is_called(name: str) -> None:
    where = BUILTIN[name].partition(":")[0]
    if find_spec(where) is None:
        pytest.skip(f"{where} is not here")
    assert Registry(points=list).get(name).about.name == name


@pytest.mark.parametrize("name", ["fs.read.v1", "a.b_c.d0.v12"])
def test_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "fs", "fs.read", "v1", "fs.v0", "fs.read.v01", "Fs.read.v1", "fs..v1", "fs.read.v1\n",
     "fs.read.v1/..", "1fs.read.v1", "fs.re-ad.v1", "a." * 60 + "v1"],
)  # fmt: skip
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidInput, match="is no name of a capability"):
        check_name(name)


def test_a_third_party_s(module: ModuleType) -> None:
    module.IT = Made("text.count.v1")
    found = Registry(lambda: [point("text.count.v1", "theirs:IT")])
    assert found.get("text.count.v1") is module.IT
    assert found.names() == (*BUILTIN, "text.count.v1")


def test_nothing_is_imported_before_it_is_asked_for(module: ModuleType) -> None:
    found = Registry(lambda: [point("text.count.v1", "not_there:IT")])
    assert "text.count.v1" in found.names()
    with pytest.raises(Unavailable):
        found.get("text.count.v1")


def test_a_name_nobody_has_names_its_neighbours() -> None:
    with pytest.raises(NotFound) as caught:
        Registry(points=list).get("fs.raed.v1")
    assert "fs.read.v1" in caught.value.remediation


def test_names_nobody_has_are_not_kept() -> None:
    found = Registry(points=list)
    for number in range(50):
        with pytest.raises(NotFound):
            found.get(f"no.such{number}.v1")
    assert found._loaded == {}


def test_a_third_party_does_not_replace_one_of_ours(module: ModuleType) -> None:
    module.IT = Made("fs.list.v1")
    found = Registry(lambda: [point("fs.list.v1", "theirs:IT")])
    assert found.get("fs.list.v1") is not module.IT
    (error,) = found.all().broken.values() if _all_here() else _of(found, "theirs")
    assert "would replace fs.list.v1" in error.message


def _all_here() -> bool:
    return all(find_spec(where.partition(":")[0]) for where in BUILTIN.values())


def _of(found: Registry, text: str) -> list[Any]:
    return [error for name, error in found.all().broken.items() if text in name]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("text.count.v1", "not_there:IT", "ModuleNotFoundError"),
        ("text.count.v1", "theirs:MISSING", "AttributeError"),
        ("text.count.v1", "theirs:OTHER", "it calls itself 'text.other.v1'"),
        ("text.count.v1", "theirs:NO_CAPABILITY", "AttributeError"),
        ("text.open.v1", "theirs:OPEN", "lets unknown parameters through"),
        ("Not A Name", "theirs:OTHER", "is no name of a capability"),
    ],
)
def test_a_broken_one_is_named_and_the_others_stay(
    module: ModuleType, name: str, value: str, why: str
) -> None:
    module.OTHER = Made("text.other.v1")
    module.OPEN = Made("text.open.v1", {"type": "object"})
    module.NO_CAPABILITY = object()
    module.GOOD = Made("text.good.v1")
    found = Registry(lambda: [point(name, value), point("text.good.v1", "theirs:GOOD")])
    catalogue = found.all()
    assert why in catalogue.broken[name].cause
    assert value in catalogue.broken[name].cause
    names = [capability.about.name for capability in catalogue.capabilities]
    assert "text.good.v1" in names and "fs.read.v1" in names
    with pytest.raises(Unavailable, match="cannot be used"):
        found.get(name)


def test_one_name_in_two_packages_is_neither_s(module: ModuleType) -> None:
    module.A, module.B = Made("text.count.v1"), Made("text.count.v1")
    found = Registry(
        lambda: [point("text.count.v1", "theirs:A"), point("text.count.v1", "theirs:B")]
    )
    with pytest.raises(Unavailable, match="several packages") as caught:
        found.get("text.count.v1")
    assert "theirs:A, theirs:B" in caught.value.cause


def test_there_are_only_so_many_third_parties(module: ModuleType) -> None:
    found = Registry(lambda: (point(f"a.b{n}.v1", "theirs:A") for n in range(10_000)))
    assert len(found.names()) == len(BUILTIN) + MAX_THIRD_PARTIES


def test_many_threads_have_one_object(module: ModuleType) -> None:
    found, seen = Registry(points=list), []
    threads = [
        threading.Thread(target=lambda: seen.append(found.get("fs.read.v1"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8 and len(set(map(id, seen))) == 1


def test_what_could_not_be_opened_for_want_of_descriptors_is_there_later() -> None:
    code = """
import importlib.metadata, resource
from agentd.capability import registry
from agentd.model.errors import Unavailable
of_none = registry.Registry(points=list)
usual = registry.Registry()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
for short in (lambda: of_none.get("fs.edit.v1"), usual.names):
    try:
        short()
    except (Unavailable, OSError) as error:
        print(type(error).__name__)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(of_none.get("fs.edit.v1").about.name)
print(sum(len(points) for points in usual._third_parties().values()) == COUNT)
"""
    count = len(tuple(entry_points(group=ENTRY_POINTS)))
    argv = [sys.executable, "-c", code.replace("COUNT", str(count))]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["Unavailable", "Unavailable", "fs.edit.v1", "True"], done.stderr
