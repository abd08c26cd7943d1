"""What runs the tests, itself tested: stages side by side, and a second try for what failed."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SECONDS = 120  # for what hangs
# Fails where its file is not there yet, and makes it.
FLAKY = """
import os, pytest
@pytest.mark.parametrize("n", range(3))
def test_it(n):
    there = os.path.exists(f"{os.environ['FOLDER']}/{n}")
    open(f"{os.environ['FOLDER']}/{n}", "w").close()
    assert there or n != 1
def test_that_fails():
    assert "bad" not in os.environ
"""


def side_by_side(lanes: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, SCRIPTS / "side-by-side"]
    return subprocess.run(
        argv, input=lanes, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def test_output_is_whole_and_failures_come_last(tmp_path: Path) -> None:
    """One lane waits for the other: they do run at once."""
    up = tmp_path / "up"
    os.mkfifo(up)
    done = side_by_side(
        f"first: sh -c 'echo one; read x <{up}; echo two'\n"
        "bad: sh -c 'echo broken >&2; exit 3'\n"
        "last: echo three\n\n"
        f"other: sh -c 'echo go >{up}'\n"
    )
    assert done.returncode == 1, done.stderr
    assert "one\ntwo\n" in done.stdout
    assert done.stdout.index("three\n") < done.stdout.index("broken\n")
    assert done.stdout.splitlines()[-1] == "FAILED: bad"
    assert side_by_side("good: true\n").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_its_stages_end_with_it(tmp_path: Path, number: int) -> None:
    told = tmp_path / "told"
    os.mkfifo(told)
    argv = [sys.executable, SCRIPTS / "side-by-side"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(f"long: sh -c 'echo $$ >{told}; sleep 600; true'\n".encode())
        process.stdin.close()
        stage = os.pidfd_open(int(told.read_text()))
        process.send_signal(number)
        poll = select.poll()
        poll.register(stage, select.POLLIN)
        assert poll.poll(SECONDS * 1000), "the stage outlived its owner"
        os.close(stage)


def twice(folder: Path, root: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "scripts/twice.py", "-p", "no:hypothesispytest", "tests"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=os.environ
        | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CI": "", "FOLDER": str(folder)}
        | {"STAGES": ""}  # what is flaky here is none of the run that asks
        | env,
        check=False,
    )


def test_what_fails_once_is_flaky_and_fails_the_run_the_next_time(tmp_path: Path) -> None:
    root, stages = tmp_path / "root", tmp_path / "stages"
    for name in ("root/scripts", "root/tests", "a", "b", "c"):
        (tmp_path / name).mkdir(parents=True)
    (root / "scripts/twice.py").write_text((SCRIPTS / "twice.py").read_text())
    (root / "tests/test_it.py").write_text(FLAKY)
    (root / "tests/flaky.txt").write_text("# none\n")

    done = twice(tmp_path / "a", root, STAGES=str(stages))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--- FLAKY: failed and passed alone: 1;" in done.stdout
    assert stages.read_text() == "flaky tests/test_it.py::test_it[1]\n"

    (root / "tests/flaky.txt").write_text("tests/test_it.py::test_it[1]  # 2026-11-27 a deadline\n")
    done = twice(tmp_path / "b", root)
    assert done.returncode == 1
    assert "already, and not mended\ntests/test_it.py::test_it[1]" in done.stdout

    done = twice(tmp_path / "c", root, bad="1")
    assert done.returncode == 1
    assert "FLAKY" not in done.stdout
