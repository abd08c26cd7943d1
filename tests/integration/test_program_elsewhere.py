"""A program that the caller has below the home, and a sandbox does not: told with the way to it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.client.sandbox import Sandbox


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    made = tmp_path / ".cargo" / "bin" / "agentd-tool"
    made.parent.mkdir(parents=True)
    made.write_text("#!/bin/sh\necho ran\n")
    made.chmod(0o755)
    return made


def _run(home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "agentd", "run", "--embedded", *words]
    env = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    return subprocess.run(argv, capture_output=True, text=True, timeout=250, env=env, check=False)


def test_the_way_to_it_is_told_and_works(tool: Path) -> None:
    home = tool.parents[2]
    failed = _run(home, "--", tool.name)
    assert failed.returncode == 127
    mount = f"--mount {home}/.cargo:{home}/.cargo"
    assert f"the host has it as {tool}" in failed.stderr
    assert mount in failed.stderr
    ran = _run(home, *mount.split(), "--", str(tool))
    assert ran.stdout == "ran\n", ran.stderr


def test_in_the_words_of_the_sdk(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tool.parents[2]))
    with Sandbox.create(isolation="namespace", embedded=True) as sandbox:
        told = sandbox.run([tool.name]).cause.remediation
        assert str(tool) in told and "mounts=" in told
        # Of what nobody has, and of what the sandbox's own PATH leaves out, nothing is made up.
        for argv, env in ((["no-such-tool"], {}), (["env"], {"PATH": "/nowhere"})):
            assert "mount" not in sandbox.run(argv, env=env).cause.remediation
