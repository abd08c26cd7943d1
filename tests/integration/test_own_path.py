"""A project at its own path, so that the scripts of its virtual environment work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import OrdinaryUser

PLACE = "/home/me/project"
SCRIPT = f"#!{PLACE}/.venv/bin/python\nimport sys; print('ran', sys.prefix)\n"


def _project(home: Path) -> Path:
    """A virtual environment that says to be at PLACE."""
    bin_ = home / "project" / ".venv" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "python").symlink_to("/usr/bin/python3")
    (bin_.parent / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (bin_ / "tool").write_text(SCRIPT)
    (bin_ / "tool").chmod(0o755)
    return home / "project"


def _owned(folder: Path, like: Path) -> None:
    if os.getuid() == 0:
        owner = like.stat()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _words(project: Path) -> list[str]:
    where = ["--mount", f"{project}:{PLACE}:rw", "-C", PLACE]
    return ["run", "--embedded", "--json", *where, "--"]


TOOL = ["sh", "-c", ".venv/bin/tool && touch made"]
RAN = f"ran {PLACE}/.venv\n"


def test_as_this_user(tmp_path: Path) -> None:
    project = _project(tmp_path)
    argv = [sys.executable, "-m", "agentd", *_words(project), *TOOL]
    ran = subprocess.run(argv, capture_output=True, timeout=250, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["stdout"] == RAN
    assert (project / "made").exists()


def test_as_an_ordinary_user(as_user: OrdinaryUser) -> None:
    project = _project(as_user.home)
    _owned(project, as_user.home)
    ran = as_user.agentd(*_words(project), *TOOL)
    if b"user namespaces" in ran.stderr:
        pytest.skip(f"an ordinary user has no namespaces here: {ran.stderr.decode()}")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["stdout"] == RAN
    assert (project / "made").exists()
