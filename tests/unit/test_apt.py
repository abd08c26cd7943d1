"""What is installed for the tests waits for another who installs, as unattended-upgrades does."""

import fcntl
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each first time that it needs a lock another has it. It says so as apt-get does, on any machine.
APT = """#!/bin/sh
case "$*" in *update*) lock=lists/lock ;; *) lock=lock-frontend ;; esac
last() { for word; do :; done; echo "$word"; }
mark="$MARKS/$(last "$@")"
[ -e "$mark" ] && exit
: >"$mark"
echo "E: Could not get lock /var/lib/$lock. It is held by process 17 (unattended-upgr)" >&2
exit 100
"""
PROGRAMS = ("sh", "date", "ldconfig", "ldd", "grep", "dirname")


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_packages_are_installed_though_another_has_apts_locks(tmp_path: Path) -> None:
    programs, marks = tmp_path / "bin", tmp_path / "marks"
    programs.mkdir()
    marks.mkdir()
    for name in PROGRAMS:
        path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
        assert path is not None, name
        (programs / name).symlink_to(path)
    program(programs / "apt-get", APT)
    program(programs / "id", "#!/bin/sh\necho 0\n")
    program(programs / "sleep", "#!/bin/sh\n")
    done = subprocess.run(
        ["/bin/sh", "scripts/packages"],
        cwd=ROOT,
        env={"PATH": str(programs), "MARKS": str(marks), "PYTHON": "/bin/false"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    installed = {mark.name for mark in marks.iterdir()}
    assert {"update", "strace", "podman"} <= installed, done
    assert "missing: " not in done.stderr and "failed" not in done.stderr


def test_what_apt_says_of_a_package_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    program(tmp_path / "apt-get", "#!/bin/sh\necho 'E: Unable to locate package x' >&2\nexit 100\n")
    program(tmp_path / "sleep", "#!/bin/sh\necho slept >&2\n")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        [ROOT / "scripts/apt", "install", "x"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "E: Unable to locate package x\n")


def test_a_lock_that_is_never_given_back_is_told(tmp_path: Path) -> None:
    program(tmp_path / "apt-get", APT.replace('[ -e "$mark" ] && exit', ""))
    program(tmp_path / "sleep", "#!/bin/sh\n")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "MARKS": str(tmp_path), "APT_UNTIL": "1"}
    done = subprocess.run(
        [ROOT / "scripts/apt", "install", "x"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and "held by process 17" in done.stderr


@pytest.mark.needs("apt-get")
def test_apts_own_lists_are_waited_for(tmp_path: Path) -> None:
    """Of lists in a folder, and an archive without a package in another."""
    for name in ("etc/sources.list.d", "state/lists/partial", "cache/archives/partial", "archive"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "archive/Packages").write_text("")
    (tmp_path / "status").write_text("")
    line = f"deb [trusted=yes] file:{tmp_path}/archive ./\n"
    (tmp_path / "etc/sources.list").write_text(line)
    own = {
        "Dir": tmp_path,
        "Dir::State": "state",
        "Dir::State::status": tmp_path / "status",
        "Dir::Cache": "cache",
        "Dir::Etc": "etc",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::main": "/dev/null",
        "APT::Sandbox::User": "",
    }
    config = tmp_path / "apt.conf"
    config.write_text("".join(f'{name} "{value}";\n' for name, value in own.items()))
    environment = os.environ | {"APT_CONFIG": str(config)}
    with (tmp_path / "state/lists/lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        timer = threading.Timer(1, fcntl.lockf, (file, fcntl.LOCK_UN))
        timer.start()
        done = subprocess.run(
            [ROOT / "scripts/apt", "update"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        timer.join()
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "state/lists").glob("*Packages"))
