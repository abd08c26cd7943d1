"""docs/network.md: its examples do what it says."""

import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, running

PAGE = (Path(__file__).parents[2] / "docs/network.md").read_text()
LINES = [
    line.partition("   ")[0]
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
    for line in block.splitlines()
]
APT = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
STABLE = "trixie"  # as Debian calls it since August 2025
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


def _reaches(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 20).close()
    except OSError:
        return False
    return True


def _pip_reaches_pypi() -> bool:
    """Debian 12 has a python3 without pip."""
    pip = shutil.which("pip", path="/usr/local/bin:/usr/bin:/bin")
    return pip is not None and _reaches("pypi.org", 443)


def _ran(folder: Path, *argv: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        argv,
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running('[sandbox]\nnetworks = ["none", "host", "restricted"]\n') as made:
        yield made


def test_its_commands_do_what_they_say(daemon: Daemon, tmp_path: Path) -> None:
    reached = _pip_reaches_pypi()
    words = [shlex.split(line) for line in LINES if "watch" not in line]
    assert len(words) >= 8
    made = daemon.ask("POST", "/v1/sandboxes", {"name": "build", "net": ["pypi"]})
    assert made.status == 201
    for line in words:
        assert line[0] == "agentd"
        if "pip" in line and not reached:
            continue
        done = _ran(tmp_path, sys.executable, "-m", *line, AGENTD_URL=daemon.url)
        refused = line[1:3] == ["net", "explain"] and "db.internal:5432" in line
        assert done.returncode == (1 if refused else 0), (line, done.stderr)
        if "learn" in line:
            assert "what it connected to is allowed by --net pypi\n" in done.stderr
        if line[1] == "create":
            assert daemon.ask("DELETE", f"/v1/sandboxes/{done.stdout.strip()}").status == 204
    assert daemon.ask("DELETE", "/v1/sandboxes/build").status == 204


def test_apt_installs_beside_the_hosts_programs(tmp_path: Path) -> None:
    (command,) = APT
    key = re.search(r"key=(\S+)", command)
    assert key
    if not (Path(key[1]).exists() and _reaches("deb.debian.org", 80)):
        pytest.skip("needs Debian's keyring, and deb.debian.org")
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    if release != STABLE:
        pytest.skip(f"the page's packages are of {STABLE}, and this host's programs of {release}")
    words = [sys.executable, "-m", *shlex.split(command)]
    words.insert(4, "--embedded")
    done = _ran(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Hello, world!\n")


def test_its_programs_run(daemon: Daemon, tmp_path: Path) -> None:
    if not _pip_reaches_pypi():
        pytest.skip("pypi.org is not reached from here, or there is no pip")
    assert len(PYTHON) == 2
    done = _ran(tmp_path, sys.executable, "-c", "\n".join(PYTHON), AGENTD_URL=daemon.url)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^pypi\.org 443 True pypi [1-9]", done.stdout, re.M), done.stdout
