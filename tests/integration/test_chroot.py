"""In a chroot the kernel allows no user namespaces: doctor and refusals say that it is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.needs("setpriv")]

# In a mount namespace of its own, so that nothing stays mounted. The folder is a mount point, or
# a plain one with the host's tops in it.
_MOUNT_POINT = "mount --bind / {root}"
_PLAIN = (
    "for top in /*; do if [ -L $top ]; then cp -P $top {root}; elif [ -d $top ]; then "
    "how=--rbind; [ $top != /tmp ] || how=--bind; "  # not what is mounted here meanwhile
    "mkdir -p {root}$top; mount $how $top {root}$top; fi; done"
)
_SCRIPT = """
set -e
mount --make-rprivate /
{mounts}
mountpoint -q {root}/proc || mount --rbind /proc {root}/proc
cd /
exec chroot {user} {root} {python} -m agentd doctor --json
"""


@pytest.mark.parametrize("mounts", [_MOUNT_POINT, _PLAIN], ids=["mount point", "plain folder"])
@pytest.mark.parametrize("user", ["", "--userspec=65534:65534"], ids=["root", "user"])
def test_a_chroot_is_told(tmp_path: Path, mounts: str, user: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    script = _SCRIPT.format(
        mounts=mounts.format(root=root), root=root, user=user, python=sys.executable
    )
    argv = ["unshare", "--mount", "sh", "-c", script]
    env = {**os.environ, "HOME": "/"}  # where no user is kept out
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["chroot"] is True
    [linux] = [wall for wall in found["backends"] if wall["name"] == "linux"]
    assert [blocker["what"] for blocker in linux["blockers"]] == [
        "this is a chroot, where the kernel allows no user namespaces"
    ]


def test_the_host_itself_is_none() -> None:
    argv = [sys.executable, "-m", "agentd", "doctor", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["machine"]["chroot"] is False
