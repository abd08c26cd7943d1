"""Scripts and their parts as one text."""

import json
import subprocess

import pytest

from agentd.capability.bundle import bundled
from agentd.capability.script import MAX_SOURCE

PYTHON = "/usr/bin/python3"
SCRIPTS = ("archive_read", "sqlite_query", "git_clone")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_with_nothing_but_the_standard_library(name: str) -> None:
    """It gets as far as to ask for its first parameter."""
    done = subprocess.run(
        [PYTHON, "-I", "-S", "-c", bundled(name)],
        input=json.dumps({}).encode(),
        capture_output=True,
        check=False,
    )
    assert b"KeyError" in done.stderr or b"no_network" in done.stdout, done.stderr
    assert len(bundled(name).encode()) <= MAX_SOURCE


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_part_is_there_once_and_before_who_needs_it(name: str) -> None:
    text = bundled(name)
    assert text.count('part("agentd.') + text.count("part('agentd.") >= 1
    for part in ("common", "archive_streams", "archive_tar"):
        assert text.count(f"part('agentd.capability.inside.{part}'") <= 1
    first = text.index("part('agentd.capability.inside.common'")
    assert all(first <= text.index(line) for line in text.splitlines() if line.startswith("part("))


def test_a_script_without_parts_is_itself() -> None:
    assert bundled("common").startswith('"""What the scripts share')


@pytest.mark.parametrize("name", ["../bundle", "a.b", "", "a\n"])
def test_only_names_of_ours(name: str) -> None:
    with pytest.raises(ValueError, match="names no script"):
        bundled(name)
