"""Whoever removes what is kept is killed in the middle of it: no half is taken for a whole."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.index import Index
from tests.integration.test_image_build import Builds, builds
from tests.integration.test_packages import index, own, packages, said

__all__ = ["builds", "index", "own"]  # fixtures

# Killed before it removes a second file of a tree.
_KILLED = """
import os, signal, sys
from agentd.client.cli.main import main
unlink, removed = os.unlink, []

def killing(path, *, dir_fd=None):
    if dir_fd is not None:
        if removed:
            os.kill(os.getpid(), signal.SIGKILL)
        removed.append(path)
    unlink(path, dir_fd=dir_fd)

os.unlink = killing
main(sys.argv[1:])
"""


def killed(*words: str, env: Mapping[str, str] = os.environ) -> None:
    argv = [sys.executable, "-c", _KILLED, *words]
    done = subprocess.run(argv, env=env, capture_output=True, timeout=120, check=False)
    assert done.returncode == -9, done


def test_packages(index: Index, own: Path) -> None:
    index.add("demo", files={"demo.py": "", **{f"demo_{at}.py": "" for at in range(9)}})
    command = ("--with", "demo", "--", "sh", "-c", "ls /opt/agentd/packages/demo*.py | wc -l")
    assert said(*command) == "10"
    killed("packages", "prune")
    assert said(*command) == "10"
    assert not list(own.glob("cache/agentd/packages/sets/*.gone"))
    killed("packages", "prune")
    packages("prune")
    assert not list(own.glob("cache/agentd/packages/sets/*"))


@pytest.mark.needs("skopeo", "umoci")
def test_an_image(builds: Builds) -> None:
    for at in range(9):
        (builds.context / f"file{at}").write_text("x")
    text = "FROM scratch\nCOPY file* /\n"
    builds.build(text)
    kept = Path(builds.told("inspect", "mine")["root"])
    # The cache of builds has its layers, and what they become is unpacked once.
    killed("image", "rm", "mine", env=builds.env)
    builds.build(text)
    assert Path(builds.told("inspect", "mine")["root"]) == kept
    assert len(os.listdir(kept)) == 9
    assert builds.told("verify", "mine") == [{"name": "mine", "state": "ready"}]
    killed("image", "rm", "mine", env=builds.env)
    builds.run("prune")
    assert not list(kept.parent.parent.iterdir())
