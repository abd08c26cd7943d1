"""The README's tour does what it says, line by line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
SCRIPTS = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{SCRIPTS}:/usr/bin:/bin", "NO_COLOR": "1"}


def steps() -> list[tuple[str, str]]:
    (console,) = blocks("console")
    parts = re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]
    return [(command, expected) for command, _, expected in (p.partition("\n") for p in parts)]


@pytest.mark.skipif(shutil.which("python3", path="/usr/bin") is None, reason="no /usr/bin/python3")
def test_the_tour_prints_what_it_says(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for command, expected in steps():
        script = command.replace("/tmp/agentd-tour", str(tmp_path))
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, cwd=folder, env=environment(),
            timeout=30, check=False,
        )  # fmt: skip
        shown = done.stdout + done.stderr
        if done.returncode:
            shown += f"[exit {done.returncode}]\n"
        assert shown == expected, command


def test_the_python_example_runs() -> None:
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(),
        timeout=30, check=False,
    )  # fmt: skip
    if "Refused" in done.stderr:
        pytest.skip("memory limits cannot be enforced here: no cgroup")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("45\n exited profile sandbox ")
    assert done.stdout.endswith("1\n2\n3\n")
