"""The example of a third party's package, as it is when it is installed."""

import importlib
import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from agentd.capability.registry import Registry
from agentd.model.capability import CallFailed

EXAMPLE = Path(__file__).parents[3] / "examples/agentd-capability-wordcount"
PACKAGE = "agentd_capability_wordcount"
NAME = "text.wordcount.v1"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What an installer makes of it: the package, and metadata beside it (PyPA's "Recording
    installed projects"). Done by hand: its build backend need not be there, nor a network."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    shutil.copytree(EXAMPLE / PACKAGE, tmp_path / PACKAGE)
    info = tmp_path / f"{PACKAGE}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.3\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop(PACKAGE, None)


@pytest.mark.usefixtures("installed")
def test_it_is_found_by_its_entry_point() -> None:
    assert NAME in {point.name for point in entry_points(group="agentd.capabilities")}
    found = Registry()
    assert found.get(NAME).about.summary == "count the lines, words and bytes of a file"
    assert NAME in found.names() and "fs.read.v1" in found.names()
    assert NAME not in found.all().broken


@pytest.mark.usefixtures("installed")
def test_it_is_called_through_the_registry(box: Any) -> None:
    box.registry = Registry()
    box.put("poem.txt", "roses are red\n")
    assert box.call(NAME, path="poem.txt") == {"lines": 1, "words": 3, "bytes": 14}


@pytest.mark.usefixtures("installed")
def test_its_examples_are_true(box: Any) -> None:
    box.registry = Registry()
    for example in box.registry.get(NAME).about.examples:
        for path, content in example.files.items():
            box.put(path, content)
        if not example.error:
            assert box.call(NAME, **example.parameters) == example.value
            continue
        with pytest.raises(CallFailed) as caught:
            box.call(NAME, **example.parameters)
        assert caught.value.code == example.error


def test_where_it_is_not_installed_nobody_has_it() -> None:
    assert NAME not in Registry().names()
