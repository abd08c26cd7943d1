"""Two agentds that share a control group's directory and no pid namespace, as beside a container
with the host's groups: neither takes the other's sandboxes for what a dead one left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
APART = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
WAITS = ["run", "--embedded", "-i", "--", "sh", "-c", "echo up; read line; echo $line"]


@pytest.mark.parametrize(("first", "then"), [(APART, []), ([], APART)], ids=["inside", "outside"])
def test_sandboxes_live_on(first: list[str], then: list[str], tmp_path: Path) -> None:
    env = {name: str(tmp_path) for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME")}
    env |= {"PATH": os.environ["PATH"]}
    agentd = [sys.executable, "-m", "agentd"]
    with subprocess.Popen(
        [*first, *agentd, *WAITS], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as waiting:
        assert waiting.stdin is not None and waiting.stdout is not None
        assert waiting.stdout.readline() == b"up\n"
        argv = [*then, *agentd, "run", "--embedded", "--", "/bin/true"]
        assert subprocess.run(argv, env=env, timeout=120, check=False).returncode == 0
        said, _ = waiting.communicate(b"still here\n", timeout=120)
    assert (waiting.returncode, said) == (0, b"still here\n")
