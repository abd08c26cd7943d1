"""The suite of every wall, over ours: output that comes once the command has ended."""

import os
import subprocess
import sys

import pytest

from agentd.testing.walls.test_late_output import *


@pytest.mark.parametrize("kind", ["host"], indirect=True)
def test_the_command_line_says_that_output_is_missing(kind: object) -> None:
    command = [sys.executable, "-m", "agentd", "run", "--backend", "host", "--", "sh", "-c"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
    for script, said in ((FLOOD, True), ("sleep 1000 & echo hi", False)):
        done = subprocess.run([*command, script], capture_output=True, env=env, check=True)
        assert (b"agentd run: output is missing" in done.stderr) == said, done.stderr
