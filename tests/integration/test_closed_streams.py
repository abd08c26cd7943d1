"""A command line that was started without one of its standard streams."""

import subprocess
import sys

import pytest

AGENTD = f"exec {sys.executable} -m agentd run --embedded"


def _ran(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f"{AGENTD} {line}"], capture_output=True, text=True, timeout=100, check=False
    )


def test_without_a_standard_input_there_is_none() -> None:
    ran = _ran("-i -- sh -c 'cat; cat /dev/stdin; echo end' <&-")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("end\n", "", 0)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_what_nobody_takes_is_dropped(closed: str) -> None:
    script = "echo out; echo more > /dev/stdout; echo err > /dev/stderr; exit 3"
    ran = _ran(f"-- sh -c '{script}' {closed}")
    told = ("" if " >&-" in f" {closed}" else "out\nmore\n", "" if "2>&-" in closed else "err\n")
    assert (ran.stdout, ran.stderr, ran.returncode) == (*told, 3)
