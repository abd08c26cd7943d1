"""The checks that every test runs under, themselves tested: each leak must fail its test."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parent.parent / "conftest.py"
LEAKS = {
    "descriptor": "os.open('/dev/null', os.O_RDONLY)",
    "child process": "os.posix_spawn('/bin/sleep', ['sleep', '6'], {})",
    "thread": "threading.Thread(target=time.sleep, args=(6,)).start()",
}


def run_pytest(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, folder / "conftest.py")
    (folder / "test_it.py").write_text(f"import os, pytest, threading, time\n\n{body}\n")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-ra",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            folder,
            folder,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


@pytest.mark.parametrize("kind", LEAKS)
def test_a_leak_fails_its_test(tmp_path: Path, kind: str) -> None:
    done = run_pytest(tmp_path, f"def test_leaks():\n    {LEAKS[kind]}")
    assert done.returncode == 1
    assert f"{kind}: " in done.stdout


def test_a_clean_test_passes(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "def test_clean():\n    os.close(os.open('/dev/null', 0))")
    assert done.returncode == 0, done.stdout


def test_what_is_absent_is_skipped_by_name(tmp_path: Path) -> None:
    body = "@pytest.mark.needs('no-such-tool')\ndef test_x():\n    raise AssertionError"
    done = run_pytest(tmp_path, body)
    assert done.returncode == 0
    assert "no-such-tool is not installed" in done.stdout


@pytest.mark.root
def test_an_ordinary_user_has_no_privileges(as_user) -> None:  # type: ignore[no-untyped-def]
    assert as_user.run(["id", "-u"]).stdout == b"65534\n"
    assert as_user.call(os.getresuid) == (65534, 65534, 65534)
    with pytest.raises(PermissionError):
        as_user.call(lambda: os.stat("/root/.profile"))


@pytest.mark.root
def test_an_ordinary_user_can_import_the_package(as_user) -> None:  # type: ignore[no-untyped-def]
    done = as_user.python("-c", "import agentd, msgspec, rich; print(agentd.__name__)")
    assert (done.stdout, done.stderr) == (b"agentd\n", b"")
