"""docs/capabilities.md says what is."""

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from agentd.capability import schema
from agentd.capability.registry import BUILTIN, Registry
from agentd.model.api import CallBody, CallView

PAGE = (Path(__file__).parents[3] / "docs/capabilities.md").read_text()


def test_the_table_has_every_built_in_one() -> None:
    rows = re.findall(r"^\| `([a-z0-9_.]+\.v\d+)` \| (.*?) \| (yes|no) ", PAGE, re.M)
    assert [name for name, _, _ in rows] == list(BUILTIN)
    for name, _, writes in rows:
        if find_spec(BUILTIN[name].partition(":")[0]):
            assert Registry(points=list).get(name).about.needs.writes is (writes == "yes"), name


def test_every_call_that_it_shows_is_one() -> None:
    lines = re.findall(r"^(?:\$ AGENTD_POLICY=\w+ )?agentd call (.*)$", PAGE, re.M)
    assert len(lines) >= 3
    for line in lines:
        name, flag, parameters, *_ = shlex.split(line)
        assert flag == "--params"
        schema.check(Registry(points=list).get(name).about, json.loads(parameters))


@pytest.mark.parametrize(("what", "model"), [("body", CallBody), ("answer", CallView)])
def test_the_tables_have_every_member_of_a_call(
    what: str, model: type[CallBody | CallView]
) -> None:
    table = PAGE.partition(f"| member of the {what} | |")[2].partition("\n\n")[0]
    firsts = " ".join(re.findall(r"^\|(.*?)\|", table, re.M))
    assert re.findall(r"`(\w+)`", firsts) == list(model.__struct_fields__)


@pytest.mark.parametrize("name", ["shell.exec.v1", "fs.read.v1", "fs.write.v1", "fs.list.v1",
                                  "fs.edit.v1", "fs.search.v1"])  # fmt: skip
def test_it_tells_of_every_parameter(name: str) -> None:
    start = PAGE.index(f"## {name}" if name == "shell.exec.v1" else f"**{name}**")
    section = re.split(r"\n## |\n\*\*fs", PAGE[start + 3 :])[0]
    for parameter in Registry(points=list).get(name).about.schema["properties"]:
        if parameter != "timeout_ms":
            assert f"`{parameter}`" in section, parameter


def test_the_example_of_how_to_write_one_works(box: Any) -> None:
    section = PAGE[PAGE.index("## How to write one") :]
    (source,) = re.findall(r"```python\n(.*?)```", section, re.S)
    found: dict[str, Any] = {}
    exec(compile(source, "docs/capabilities.md", "exec"), found)  # noqa: S102  our own page
    capability = found["CAPABILITY"]
    schema.check_schema(capability.about)
    (example,) = capability.about.examples
    box.put("a", example.files["a"])
    assert box.call(capability, **example.parameters) == example.value
    box.put("$(id)'", "odd")
    assert box.call(capability, path="$(id)'") == {"text": "ODD"}
