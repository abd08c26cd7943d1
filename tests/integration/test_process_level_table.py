"""The process level: what it shows, and what it takes away as docs/walls.md says."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.conftest import OrdinaryUser

PAGE = Path(__file__).parents[2] / "docs/walls.md"
EACH = r"""
import json, sys
from agentd import Sandbox
with Sandbox.create(isolation="process", timeout="30s") as sandbox:
    for number, script in enumerate(json.load(open("scripts"))):
        result = sandbox.run(f"mkdir row{number} && cd row{number} && {{ {script}\n}}")
        print(json.dumps(["works" if result.ok else "fails", result.stderr_text[-200:]]))
"""
SECRET = "TOKEN=very secret"


def table() -> list[tuple[str, str, str]]:
    _, _, section = PAGE.read_text().partition("## What the process level takes away")
    rows = re.findall(r"^\| .* \| `(.+)` \| (\w+) \| (\w+) \| .*\|$", section, re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\| ", section, re.MULTILINE)) - 1
    return rows


def needed(script: str) -> bool:
    words = {"git", "gcc", "make", "python3", "script"} & set(script.replace("/", " ").split())
    return all(shutil.which(word, path="/usr/bin:/bin") for word in words)


def check(rows: list[tuple[str, str]], output: str) -> None:
    seen = [json.loads(line) for line in output.splitlines()]
    assert len(seen) == len(rows)
    wrong = [
        (script, said, *found)
        for (script, said), found in zip(rows, seen, strict=True)
        if found[0] != said
    ]
    assert not wrong


def test_as_an_ordinary_user_the_table_is_true(as_user: OrdinaryUser) -> None:
    rows = [(script, said) for script, said, _ in table() if needed(script)]
    (as_user.home / "scripts").write_text(json.dumps([script for script, _ in rows]))
    ran = as_user.python("-c", EACH, timeout=120)
    assert ran.returncode == 0, ran.stderr
    check(rows, ran.stdout.decode())


@pytest.mark.root
def test_as_root_the_table_is_true(tmp_path: Path) -> None:
    rows = [(script, said) for script, _, said in table() if needed(script)]
    (tmp_path / "scripts").write_text(json.dumps([script for script, _ in rows]))
    words = [sys.executable, "-c", EACH]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    check(rows, ran.stdout)


START = """
import os, runpy, sys
os.chdir(sys.argv.pop(1))
runpy.run_module("agentd", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("words", [["--isolation", "process"], ["--backend", "landlock"]])
def test_where_it_is_started_is_shown_only_to_who_asks(
    as_user: OrdinaryUser, words: list[str]
) -> None:
    project = as_user.home / "project"
    as_user.python("-c", "import os, sys; os.mkdir(sys.argv[1])", str(project))
    (project / ".env").write_text(SECRET)
    script = f"cat .env; cat {project}/.env; ls {project}; ls -A"
    for more, shown in (([], 0), (["-w", "."], 2), (["--mount", f"{project}:{project}"], 1)):
        run = ["run", *words, *more, "--", "sh", "-c", script]
        ran = as_user.python("-c", START, str(project), *run)
        assert ran.stdout.count(SECRET.encode()) == shown, (more, ran)
        assert shown or ran.stdout == b""


def test_a_mount_elsewhere_is_refused_with_the_way_out(as_user: OrdinaryUser) -> None:
    """Or taken by a stronger wall, where the level was named and not the wall."""
    folder = as_user.home / "data"
    as_user.python("-c", "import os, sys; os.mkdir(sys.argv[1])", str(folder))
    mount = ["--mount", f"{folder}:/in", "--", "ls", "-d", "/in"]
    ran = as_user.python("-m", "agentd", "run", "--backend", "landlock", *mount)
    assert ran.returncode == 125, ran
    words = f"cannot put {folder} at /in", f"{folder}:{folder}", "--isolation namespace"
    assert all(word.encode() in ran.stderr for word in words), ran.stderr
    ran = as_user.python("-m", "agentd", "run", "--isolation", "process", *mount)
    assert ran.stdout == b"/in\n" or b"cannot put" in ran.stderr, ran


@pytest.mark.root
def test_neither_is_where_root_starts_it() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / ".env").write_text(SECRET)
        words = ["run", "--isolation", "process", "--", "cat", f"{folder}/.env"]
        ran = subprocess.run(
            [sys.executable, "-m", "agentd", *words], cwd=folder, capture_output=True, check=False
        )
    assert (ran.stdout, ran.returncode) == (b"", 1)
