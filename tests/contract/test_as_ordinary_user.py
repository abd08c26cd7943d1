"""The whole of this directory once more, as a user without any privilege."""

import os
import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "scripts" / "test-user"


@pytest.mark.root
@pytest.mark.needs("setpriv")
@pytest.mark.timeout(300)
def test_every_wall_holds_for_an_ordinary_user() -> None:
    python = Path(os.path.realpath(PROJECT / ".venv/bin/python"))
    if not python.exists():
        pytest.skip("ordinary user: there is no .venv; run scripts/setup")
    if not all(folder.stat().st_mode & 0o001 for folder in python.parents):
        pytest.skip(f"ordinary user: {python} is closed to it; build .venv on /usr/bin/python3")
    done = subprocess.run(
        [SCRIPT], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    passed = re.search(r"(\d+) passed", report)
    assert passed, report
    assert int(passed[1]) > 100, report
