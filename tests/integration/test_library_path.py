"""A Python that its loader starts with LD_LIBRARY_PATH alone, as one with a libpython elsewhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.security.daemons import running

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
NEEDED = "int agentd_needed(void) { return 0; }"
STARTED = """
#include <unistd.h>
int agentd_needed(void);
int main(int count, char **words) { (void)count; return agentd_needed() + execv(PYTHON, words); }
"""


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """It is sys.executable there, and all else is this one's."""
    (tmp_path / "needed.c").write_text(NEEDED)
    (tmp_path / "python.c").write_text(STARTED)
    real = f'-DPYTHON="{os.path.realpath(sys.executable)}"'
    for words in (
        ["-shared", "-fPIC", "-o", "libneeded.so", "needed.c"],
        [real, "-o", "python3", "python.c", "-L.", "-lneeded"],
    ):
        subprocess.run(["gcc", *words], cwd=tmp_path, check=True, timeout=60)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    bare = subprocess.run(
        [f"{tmp_path}/python3", "-V"], capture_output=True, timeout=60, check=False
    )
    assert bare.returncode == 127, bare
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    return f"{tmp_path}/python3"


@pytest.mark.parametrize("wall", ["linux", "landlock"])
def test_sandboxes_are_made_by_it_and_are_not_told(python: str, wall: str) -> None:
    words = [python, "-m", "agentd", "run", "--backend", wall, "--", "sh", "-c", "env; echo made"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("made\n") and "LD_LIBRARY_PATH" not in done.stdout


def test_a_daemon_runs_by_it(python: str) -> None:
    instead = ("sh", "-c", 'shift; exec "$0" "$@"', python)
    with running(prefix=instead) as daemon:
        answer = daemon.ask("POST", f"/v1/sandboxes/{daemon.sandbox()}/exec", {"cmd": "echo made"})
        assert answer.json["stdout"] == "made\n", answer.body
