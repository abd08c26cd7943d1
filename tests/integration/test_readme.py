"""The README's tour does what it says, line by line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import OrdinaryUser

README = Path(__file__).parents[2] / "README.md"
SCRIPTS = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def environment(state: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if name != "AGENTD_URL"},
        "PATH": f"{SCRIPTS}:/usr/bin:/bin",
        "NO_COLOR": "1",
        "XDG_RUNTIME_DIR": "/nonexistent",  # no daemon of this machine
        "AGENTD_DAEMON__STATE": state,
    }


def steps(console: str) -> list[tuple[str, str]]:
    parts = re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]
    return [(command, expected) for command, _, expected in (p.partition("\n") for p in parts)]


@pytest.mark.skipif(shutil.which("python3", path="/usr/bin") is None, reason="no /usr/bin/python3")
def test_the_tour_prints_what_it_says(tmp_path: Path) -> None:
    tour, _ = blocks("console")
    for command, expected in steps(tour):
        assert shell(command.replace("/tmp/agentd-tour", str(tmp_path)), tmp_path) == expected


def test_calls_policies_and_receipts_are_as_it_says(tmp_path: Path) -> None:
    _, console = blocks("console")
    names: list[str] = []
    for command, expected in steps(console):
        name, equals, found = command.partition("=$(")
        if equals and not expected:
            # A shell's variable, which the next command uses.
            names.append(f"{name}={shell(found.removesuffix(')'), tmp_path)}".strip())
            continue
        shown = shell("; ".join([*names, command]), tmp_path)
        shown = re.sub(r"req-[0-9a-f]{16}", "req-...", shown)
        assert shown == expected.replace("uid:1000", f"uid:{os.geteuid()}"), command


def shell(script: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=folder,
        env=environment(str(folder / "state")), timeout=120, check=False,
    )  # fmt: skip
    shown = done.stdout + done.stderr
    return shown + (f"[exit {done.returncode}]\n" if done.returncode else "")


def test_the_python_example_runs(tmp_path: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=120, check=False,
        env=environment(str(tmp_path)),
    )  # fmt: skip
    check_python_example(done)


def test_the_python_example_runs_as_an_ordinary_user(as_user: OrdinaryUser) -> None:
    (code,) = blocks("python")
    check_python_example(as_user.python("-c", code))


def check_python_example(done: "subprocess.CompletedProcess[bytes]") -> None:
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"45\n exited profile sandbox ")
    assert done.stdout.endswith(b"1\n2\n3\njob.py\n")
