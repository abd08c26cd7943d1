"""A command's way through the daemon, and what docs/architecture.md says of the files on it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
#: A walk of a timer's, another cgroup hierarchy.
SOME = 4


@pytest.fixture(scope="module")
def way() -> dict[str, Any]:
    program = [sys.executable, str(ROOT / "bench/path"), "--json", "--rounds", "5"]
    counted = subprocess.run(program, capture_output=True, check=True, text=True, timeout=120)
    found: dict[str, Any] = json.loads(counted.stdout)
    return found


def deciding() -> dict[str, str]:
    (table,) = re.findall(r"\| file \| decides \|\n\|-+\|-+\|\n((?:\|.*\n)+)", PAGE)
    return dict(re.findall(r"\| `([\w/]+\.py)` \| (.+) \|\n", table))


def test_a_command_passes_as_many_files_as_the_page_says(way: dict[str, Any]) -> None:
    (told,) = re.findall(r"Some (\d+) files have a part in that", PAGE)
    assert abs(len(way["files"]) - int(told)) <= SOME, sorted(way["files"])


def test_each_file_that_decides_is_on_the_way_of_every_command(way: dict[str, Any]) -> None:
    assert len(deciding()) == 12
    assert deciding().keys() <= way["files"].keys()
