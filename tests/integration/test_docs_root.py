"""docs/root.md: its commands do what it says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.sandbox.backends import identity
from agentd.sandbox.backends.linux.backend import LinuxBackend

PAGE = Path(__file__).parents[2] / "docs/root.md"
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line]


@pytest.fixture(scope="module", autouse=True)
def usable() -> None:
    backend = LinuxBackend()
    try:
        found = backend.probe()
    finally:
        backend.close()
    if not found.usable:
        pytest.skip("; ".join(blocker.what for blocker in found.blockers))
    if not identity.available():
        pytest.skip(f"one id alone: {identity.hindrance()}")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page(command: str) -> None:
    words = shlex.split(command)
    assert words[:2] == ["agentd", "run"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("AGENTD_")}
    done = subprocess.run(
        [sys.executable, "-m", "agentd", "run", "--embedded", *words[2:]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()
    assert not os.path.lexists("/etc/y")


def test_there_are_commands_and_one_has_a_root_to_write_to() -> None:
    assert len(COMMANDS) == 3
    assert any("--user root --writable" in command for command in COMMANDS)
