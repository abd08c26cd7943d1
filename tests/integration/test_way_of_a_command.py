"""A command's way through the daemon, and what docs/architecture.md says of the files on it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
#: Another cgroup hierarchy, what is written in another batch.
SOME = 4


@pytest.fixture(scope="module")
def way() -> list[str]:
    """The files that one had a part in, of the round in which they were fewest: a timer's tick may
    fall into any."""
    program = [sys.executable, str(ROOT / "bench/path"), "--json", "--rounds", "9"]
    counted = subprocess.run(program, capture_output=True, check=True, text=True, timeout=120)
    found: list[str] = json.loads(counted.stdout)["fewest"]
    return found


def deciding() -> dict[str, str]:
    (table,) = re.findall(r"\| file \| decides \|\n\|-+\|-+\|\n((?:\|.*\n)+)", PAGE)
    return dict(re.findall(r"\| `([\w/]+\.py)` \| (.+) \|\n", table))


def test_a_command_passes_as_many_files_as_the_page_says(way: list[str]) -> None:
    (told,) = re.findall(r"Some (\d+) files have a part in that", PAGE)
    assert abs(len(way) - int(told)) <= SOME, way


def test_each_file_that_decides_is_on_the_way_of_every_command(way: list[str]) -> None:
    assert len(deciding()) == 12
    assert deciding().keys() <= set(way)
