"""Threat: a sandbox leaves a project on the host half changed.

Controls: what ``--apply`` would write is measured against the room there is before the first byte;
a file has no name before it is whole, and what a killed agentd left is removed by the next one.
"""

import contextlib
import fcntl
import os
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


RUN = [sys.executable, "-m", "agentd", "run", "--backend", "linux"]
LEFT = ".agentd-0123456789abcdef"


def test_one_that_is_killed_as_it_writes_leaves_nothing(tmp_path: Path) -> None:
    words = ["-w", f"{tmp_path}:cow", "--apply", "--", "sh", "-c"]
    for megabytes in (100, 200, 400):  # as a file that is written too fast was not seen
        script = f"head -c {megabytes}M /dev/zero | tr '\\0' x > large"
        with subprocess.Popen([*RUN, "--disk", "1G", *words, script]) as process:
            seen = False
            while not seen and process.poll() is None:
                seen = any(f"{tmp_path}/" in name for name in opened(process.pid))
            process.kill()
        if seen:
            break
        (tmp_path / "large").unlink()
    assert seen
    assert os.listdir(tmp_path) in ([], ["large"])
    subprocess.run([*RUN, "--", "true"], check=True, timeout=60)  # frees what it held


def opened(pid: int) -> list[str]:
    """The names of its open files."""
    found = []
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def test_what_a_killed_one_left_is_removed_and_nobody_elses(tmp_path: Path) -> None:
    kept = [".agentd-fedcba9876543210", ".agentd-0123456789abcdef0", ".agentd-folder", "file"]
    for name in (LEFT, *kept):
        (tmp_path / name).write_text("x")
    (tmp_path / ".agentd-00000000000000aa").mkdir()
    with (tmp_path / kept[0]).open() as used:
        fcntl.flock(used, fcntl.LOCK_EX)  # as whoever writes it does
        words = ["-w", f"{tmp_path}:cow", "--apply", "--", "sh", "-c", "echo x > made"]
        subprocess.run([*RUN, *words], check=True, timeout=60)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, ".agentd-00000000000000aa", "made"])
