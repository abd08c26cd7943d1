"""Threat: a sandbox leaves a project on the host half changed.

Controls: what ``--apply`` would write is measured against the room there is before the first byte.
"""

import subprocess
import sys
from pathlib import Path

import pytest

MOUNTED = """
mount -t tmpfs -o size=1M none "$1" && cd "$1" && shift && echo old | tee first >last && "$@"
ls
cat first last
"""
CHANGE = "echo new >first; head -c 4000000 /dev/urandom >large; echo new >last"


@pytest.mark.root
def test_a_folder_without_room_is_left_as_it_was(tmp_path: Path) -> None:
    """On a file system of 1 MiB, in a mount namespace that only the child sees."""
    run = [
        sys.executable,
        "-m",
        "agentd",
        "run",
        "-w",
        ".:cow",
        "--apply",
        "--",
        "sh",
        "-c",
        CHANGE,
    ]
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", MOUNTED, "sh", str(tmp_path), *run],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "first\nlast\nold\nold\n", ran.stderr
    assert "are left on the disk here" in ran.stderr
