"""The suite of every wall, over ours: output that comes once the command has ended."""

import os
import subprocess
import sys
import time

import pytest

from agentd.testing.walls.test_late_output import *


@pytest.mark.parametrize("kind", ["host"], indirect=True)
def test_the_command_line_says_that_output_is_missing(kind: object) -> None:
    command = [sys.executable, "-m", "agentd", "run", "--backend", "host", "--", "sh", "-c"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}

    def is_told(script: str) -> bool:
        done = subprocess.run([*command, script], capture_output=True, env=env, check=True)
        return b"agentd run: output is missing" in done.stderr

    assert not is_told("sleep 1000 & echo hi")
    deadline = time.monotonic() + SECONDS
    while not is_told(FLOOD):  # on a busy machine it may have no processor at the last
        assert time.monotonic() < deadline, "it was never told of"
