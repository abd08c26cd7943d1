"""Numbers are written in the digits of ASCII: those of other scripts are refused by each door."""

import os
import subprocess
import sys
from typing import Any

import pytest

from agentd import Sandbox
from agentd.model.errors import InvalidInput

THREE = "\N{ARABIC-INDIC DIGIT THREE}"


@pytest.mark.parametrize(
    "options",
    [
        {"idle_timeout": f"{THREE}s"},
        {"timeout": THREE},
        {"memory": f"{THREE}G"},
        {"disk": f"1.{THREE}G"},
        {"output": f"{THREE}M"},
        {"cpus": THREE},
        {"cpus": "1_0"},
        {"pids": THREE},
        {"open_files": f"{THREE}000"},
        {"user": THREE},
    ],
    ids="-".join,
)
def test_by_the_sdk(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Sandbox.create(**options).close()


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--memory", f"{THREE}G", "--", "true"),
        ("run", "--cpus", "1_0", "--", "true"),
        ("run", "--timeout", f"{THREE}s", "--", "true"),
        ("create", "--idle-timeout", f"{THREE}s"),
        ("port", "sbx-aaaaaaaaaaaa", THREE),
        ("port", "sbx-aaaaaaaaaaaa", "1_0"),
        ("port", "sbx-aaaaaaaaaaaa", "80", "--host-port", THREE),
        ("image", "pull", "dir:/etc", "--max-files", THREE),
        ("image", "pull", "dir:/etc", "--max-size", f"{THREE}G"),
    ],
    ids=lambda words: "-".join(words[:3]),
)
def test_by_the_command_line(words: tuple[str, ...]) -> None:
    done = agentd(*words)
    assert done.returncode == 2, done.stderr
    assert THREE in done.stderr or "1_0" in done.stderr


def agentd(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "agentd", *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_by_the_environment_of_a_daemon() -> None:
    """What names no setting is told, whatever it is called; no traceback."""
    done = agentd("config", "check", **{"AGENTD_LISTEN__\N{SUPERSCRIPT TWO}__ADDRESS": "x"})
    assert done.returncode and "names no key" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr
