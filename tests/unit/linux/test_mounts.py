"""Where mounts are, whatever their paths hold."""

import subprocess
import sys
from pathlib import Path

import pytest

from agentd.linux import mounts

_MOUNTED = """
import sys
from agentd.linux import abi, mounts
from agentd.linux.kernel import KERNEL
KERNEL.unshare(abi.CLONE_NEWNS)
KERNEL.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
KERNEL.mount("tmpfs", sys.argv[1], "tmpfs", 0)
print(sys.argv[1] in mounts.points())
"""


@pytest.mark.root
@pytest.mark.parametrize(
    "name", ["a b", "\N{LATIN SMALL LETTER E WITH ACUTE}", "a\\040b", "\udcff"]
)
def test_a_mount_point_has_its_name(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.mkdir()
    command = [sys.executable, "-c", _MOUNTED, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_the_root_is_among_those_of_this_process() -> None:
    assert "/" in mounts.points()
