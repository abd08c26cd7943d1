"""agentd where it has less of the processors than a sandbox is asked with."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.linux import cgroup

pytestmark = pytest.mark.root
IN_GROUP = 'echo $$ > "$0/tasks" && exec "$@"'


@pytest.fixture
def half() -> Iterator[Path]:
    """A group that has half of one."""
    base = Path("/sys/fs/cgroup/cpu")
    hierarchy = cgroup.detect()
    if hierarchy is None or hierarchy.version != 1 or hierarchy.blockers() or not base.is_dir():
        pytest.skip("it is of cgroup v1 alone: v2 lets a group be told more than those above have")
    group = base / f"test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("50000")
        yield group
    finally:
        deadline = time.monotonic() + 60
        while group.exists():
            for folder in (*group.glob("agentd/*/"), group / "agentd", group):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    continue
                except OSError:  # what was in it ends a moment later
                    assert time.monotonic() < deadline, list(group.rglob("*"))
            time.sleep(0.02)


@pytest.mark.parametrize("cpus", ["0.2", "1"])
def test_more_than_it_has_is_what_it_has(half: Path, cpus: str) -> None:
    argv = [sys.executable, "-m", "agentd", "run", "--json", "--backend", "linux", "--cpus", cpus]
    done = subprocess.run(
        ["sh", "-c", IN_GROUP, half, *argv, "--", "echo", "hi"],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["stdout"] == "hi\n" and found["enforcement"]["cpus"]["enforced"]
