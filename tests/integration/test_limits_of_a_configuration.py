"""What a configuration says that no sandbox could have, told before there is a daemon."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("name", "least"), [("pids", "1"), ("cpus", "0.01")])
@pytest.mark.parametrize("where", ["default", "max"])
def test_a_limit_of_nothing_is_warned_of(name: str, least: str, where: str, tmp_path: Path) -> None:
    file = tmp_path / "agentd.toml"
    file.write_text(f"[limits.{where}]\n{name} = 0\n")
    words = [sys.executable, "-m", "agentd", "config", "check", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    told = f"2: warning: limits.{where}.{name}: is too little for any sandbox (give {least})"
    assert told in done.stdout + done.stderr
    assert done.returncode == 0
