"""The list of programs of `make compat`: what it says of itself, and a few of them run inside."""

import re
import subprocess
from pathlib import Path

import pytest
from tests.compat import cpython
from tests.compat.__main__ import BEGIN, END
from tests.compat.rows import LIST, Row, inside, missing, outside, rows

ROWS = list(rows())
# One of each cause for which programs once failed inside.
SOME = (
    "/dev/stderr is opened",
    "its own name has an address",
    "socket.if_nameindex",
    "venv and its script",
    "PostgreSQL in its usual place",
    "screen",
    "dpkg -l",
    "git init --shared",
    "nproc, lscpu",
    "AddressSanitizer and its leak check",
)
PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


def test_there_are_150_programs_of_20_kinds() -> None:
    assert len(ROWS) >= 150
    assert len({row.kind for row in ROWS}) >= 20
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert all(row.needs for row in ROWS)
    reasons = re.findall(r'^"(.+)" = "', LIST.read_text().partition("[reasons]")[2], re.MULTILINE)
    assert set(reasons) <= set(names)


def test_their_scripts_are_bash() -> None:
    for row in ROWS:
        read = subprocess.run(
            ["bash", "-n"], input=row.script.encode(), capture_output=True, check=False
        )
        assert read.returncode == 0, f"{row.name}: {read.stderr.decode()}"


def test_the_page_has_their_table() -> None:
    table = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    for kind in {row.kind for row in ROWS}:
        assert f"| {kind} |" in table


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in SOME], ids=lambda r: r.name)
def test_what_works_outside_works_inside(row: Row) -> None:
    if lacking := missing(row):
        pytest.skip(f"{lacking} is not installed")
    found = inside(row, isolation="namespace", memory="1G")
    if not found.passed and not outside(row, as_root=False).passed:
        pytest.skip("it does not work outside either")
    assert found.passed, found.said


MODULES = ("test_pty", "test_ioctl", "test_posixpath", "test_mmap")  # of some seconds


@pytest.mark.parametrize("name", MODULES)
def test_a_module_of_cpythons_suite_passes_inside(name: str) -> None:
    if name not in cpython.modules():
        pytest.skip("libpython3.13-testsuite is not installed")
    assert cpython.inside([cpython.PYTHON, "-m", "test", name]) == ("passed", "")
