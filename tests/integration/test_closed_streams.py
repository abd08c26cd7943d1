"""A command line that was started without one of its standard streams."""

import subprocess
import sys
from pathlib import Path

import pytest

AGENTD = f"exec {sys.executable} -m agentd"


def _agentd(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f"{AGENTD} {line}"], capture_output=True, text=True, timeout=100, check=False
    )


def _ran(line: str) -> subprocess.CompletedProcess[str]:
    return _agentd(f"run --embedded {line}")


def test_without_a_standard_input_there_is_none() -> None:
    ran = _ran("-i -- sh -c 'cat; cat /dev/stdin; echo end' <&-")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("end\n", "", 0)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_what_nobody_takes_is_dropped(closed: str) -> None:
    script = "echo out; echo more > /dev/stdout; echo err > /dev/stderr; exit 3"
    ran = _ran(f"-- sh -c '{script}' {closed}")
    told = ("" if " >&-" in f" {closed}" else "out\nmore\n", "" if "2>&-" in closed else "err\n")
    assert (ran.stdout, ran.stderr, ran.returncode) == (*told, 3)


@pytest.mark.parametrize("words", ["net presets --json", "net presets", "sign --help"])
def test_without_a_standard_output_a_command_does_what_it_does(words: str) -> None:
    ran = _agentd(f"{words} >&-")
    assert (ran.stderr, ran.returncode) == ("", 0)


@pytest.mark.parametrize("words", ["ls --url unix:/nonexistent/socket", "net reset --json"])
def test_without_a_standard_error_nothing_of_it_is_in_the_output(words: str) -> None:
    told, ran = _agentd(words), _agentd(f"{words} 2>&-")
    assert told.stderr and told.returncode
    assert (ran.stdout, ran.returncode) == (told.stdout, told.returncode)


@pytest.mark.parametrize(
    "words",
    ["sign - --key /dev/null", "call shell.exec.v1 --params @-", "image build -t x -f - /tmp"],
)
def test_what_is_to_be_read_from_a_closed_input_is_refused(words: str) -> None:
    ran = _agentd(f"{words} <&-")
    assert "standard input is closed (name a file instead of -)" in ran.stderr
    assert (ran.stdout, ran.returncode) == ("", 2)


def test_what_is_to_be_written_to_a_closed_output_is_refused(tmp_path: Path) -> None:
    key, request = tmp_path / "key.pem", tmp_path / "request"
    assert _agentd(f"sign --new-key {key}").returncode == 0
    request.write_text('{"capability": "fs.list.v1"}')
    for words in (f"sign {request} --key {key} --out -", "snapshot export /nonexistent -"):
        ran = _agentd(f"{words} >&-")
        assert "standard output is closed (name a file instead of -)" in ran.stderr, ran
        assert ran.returncode == 2
