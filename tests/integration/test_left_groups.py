"""A group that a dead agentd left, with a process in it that is not ours to end, keeps nobody from
working beside it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.linux import cgroup

ANOTHER = 4242
# Root of a user namespace: the group's files are its own, the process in it is not.
NAMESPACE = ["unshare", "--user", "--map-current-user", "--keep-caps"]
NO_PID = 4194304  # above PID_MAX_LIMIT
TRIES = 20


@pytest.fixture
def left() -> Iterator[cgroup.Group]:
    hierarchy = cgroup.detect()
    if hierarchy is None or hierarchy.blockers():
        pytest.skip("no group can be made here")
    with subprocess.Popen(["sleep", "600"], user=ANOTHER) as process:
        try:
            group = _holding(hierarchy, process.pid)
            yield group
        finally:
            process.kill()
    group.remove()


def _holding(hierarchy: cgroup.Hierarchy, pid: int) -> cgroup.Group:
    """Another agentd beside us may find it, as that of a dead one, before the process is in it."""
    for _ in range(TRIES):
        group = hierarchy.create(f"sbx-{NO_PID}-1-{os.urandom(4).hex()}", pids=10)
        try:
            group.attach(pid)
        except FileNotFoundError:
            group.remove()
        else:
            return group
    pytest.fail(f"the group was taken away {TRIES} times")


@pytest.mark.root
@pytest.mark.parametrize("isolation", ["process", "namespace"])
def test_what_cannot_be_removed_is_left(left: cgroup.Group, tmp_path: Path, isolation: str) -> None:
    env = {name: str(tmp_path) for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME")}
    words = ["run", "--isolation", isolation, "--", "/bin/echo", "works"]
    ran = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "agentd", *words],
        env=env | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (ran.returncode, ran.stdout) == (0, "works\n"), ran.stderr
