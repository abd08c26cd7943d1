"""With the devices that deploy/agentd.service leaves it, agentd makes all that takes one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.test_deploy import SERVICE

from agentd.linux import disk

GROUPS = Path("/sys/fs/cgroup/devices")
# What DevicePolicy=closed leaves anyway: systemd.resource-control(5).
_USUAL = ("c 1:3", "c 1:5", "c 1:7", "c 1:8", "c 1:9", "c 5:0", "c 5:2", "c 136:*")
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0
    or not (GROUPS / "devices.deny").exists()
    or disk.program() is None
    or bool(disk.hindrance()),
    reason="needs root, the devices controller of cgroup v1, loop devices and mke2fs",
)


def _numbers(name: str) -> str:
    """Of a device that DeviceAllow= names, by its path or its driver's name."""
    if name.startswith("/"):
        number = os.stat(name).st_rdev
        return f"c {os.major(number)}:{os.minor(number)}"
    kind, _, driver = name.partition("-")
    block = Path("/proc/devices").read_text().partition("Block devices:")[2]
    assert kind == "block"
    (major,) = (row.split()[0] for row in block.splitlines() if row.split()[1:] == [driver])
    return f"b {major}:*"


@pytest.fixture
def group() -> Iterator[Path]:
    made = GROUPS / f"agentd-unit-{os.getpid()}"
    made.mkdir()
    try:
        (made / "devices.deny").write_text("a")
        names = [line.rsplit(" ", 1)[0] for line in SERVICE["DeviceAllow"]]
        there = [name for name in names if not name.startswith("/") or os.path.exists(name)]
        for each in (*_USUAL, *map(_numbers, there)):
            (made / "devices.allow").write_text(f"{each} rwm")
        yield made
    finally:
        made.rmdir()


def test_a_volume_with_a_size_is_made_and_used(group: Path, tmp_path: Path) -> None:
    env = {**os.environ, "AGENTD_DAEMON__STATE": str(tmp_path / "state")}

    def agentd(*words: str) -> "subprocess.CompletedProcess[str]":
        join = f'echo $$ > {group}/cgroup.procs; exec "$@"'
        argv = ["sh", "-c", join, "sh", sys.executable, "-m", "agentd", *words]
        return subprocess.run(
            argv, env=env, capture_output=True, text=True, check=False, timeout=120
        )

    made = agentd("volume", "create", "kept", "--size", "40M", "--embedded")
    assert (made.returncode, made.stdout, made.stderr) == (0, "kept\n", "")
    run = ("run", "--embedded", "--backend", "linux", "--volume", "kept:/kept", "--")
    used = agentd(*run, "sh", "-c", "echo kept > /kept/a; cat /kept/a")
    assert (used.returncode, used.stdout) == (0, "kept\n"), used.stderr
    removed = agentd("volume", "rm", "kept", "--embedded")
    assert (removed.returncode, removed.stderr) == (0, "")
