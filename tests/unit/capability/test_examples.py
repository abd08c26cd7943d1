"""Every example that a capability shows is true."""

from importlib.util import find_spec
from typing import Any

import pytest

from agentd.capability.registry import BUILTIN, Registry
from agentd.model.capability import CallFailed, Example

# These need a server or a kernel, and are tested with it.
ELSEWHERE = {"http.fetch.v1", "git.clone.v1", "python.exec.v1"}


def _there(name: str) -> bool:
    return find_spec(BUILTIN[name].partition(":")[0]) is not None


def _examples() -> list[Any]:
    found = []
    registry = Registry(points=list)
    for name in BUILTIN:
        if _there(name) and name not in ELSEWHERE:
            examples = registry.get(name).about.examples
            assert examples, f"{name} has no example"
            found += [pytest.param(name, one, id=f"{name}: {one.about}") for one in examples]
    return found


@pytest.mark.parametrize(("name", "example"), _examples())
def test_it_does_what_it_says(box: Any, name: str, example: Example) -> None:
    for path, content in example.files.items():
        box.put(path, content)
    if example.error:
        with pytest.raises(CallFailed) as caught:
            box.call(name, **example.parameters)
        assert caught.value.code == example.error
        return
    value = box.call(name, **example.parameters)
    assert {member: value[member] for member in example.value} == example.value


def test_every_capability_of_ours_shows_one_that_works_and_an_end_that_does_not() -> None:
    for name in ("fs.read.v1", "fs.write.v1", "fs.list.v1", "fs.edit.v1", "fs.search.v1"):
        errors = {one.error for one in Registry(points=list).get(name).about.examples}
        assert "" in errors and len(errors) > 1, name
