"""An image of the packages of a Debian that this machine is not, built and started by the CLI."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.vm.debian import Unavailable, cache_dir
from tests.vm.suites import apt_config

pytestmark = pytest.mark.timeout(900)
RELEASES = {"bookworm": ("6.1.", "3.11."), "trixie": ("6.12.", "3.13.")}
SHOW = (
    "uname -r; python3 -c 'import platform, sqlite3; print(platform.python_version())'; bash -c id"
)


@pytest.fixture(params=RELEASES)
def suite(request: pytest.FixtureRequest) -> str:
    if platform.freedesktop_os_release().get("VERSION_CODENAME") == request.param:
        pytest.skip(f"this is {request.param}: test_image.py builds of its packages")
    return str(request.param)


@pytest.fixture
def environment(suite: str, tmp_path: Path) -> dict[str, str]:
    try:
        found = {"APT_CONFIG": apt_config(suite), "XDG_CACHE_HOME": str(tmp_path)}
    except Unavailable as error:
        pytest.skip(str(error))
    packages = cache_dir() / f"image-{suite}"
    if packages.is_dir():
        shutil.copytree(packages, tmp_path / "agentd/images/.packages", symlinks=True)
    return {name: os.environ[name] for name in ("PATH", "HOME")} | found


def agentd(environment: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "agentd", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def keep(suite: str, packages: Path) -> None:
    """What was downloaded is there the next time."""
    kept = cache_dir() / f"image-{suite}"
    if not kept.is_dir():
        copy = cache_dir() / f"image-{suite}.{os.getpid()}"
        leave = shutil.ignore_patterns("*.cpio", ".download-*", "tmp*")
        shutil.copytree(packages, copy, symlinks=True, ignore=leave)
        copy.rename(kept)


@pytest.mark.needs("qemu-system-x86_64")
def test_it_is_built_and_starts(suite: str, environment: dict[str, str], tmp_path: Path) -> None:
    kernel, python = RELEASES[suite]
    done = agentd(environment, "image", "build", "--json")
    if "apt-get" in done.stderr and "failed" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    keep(suite, tmp_path / "agentd/images/.packages")
    image = json.loads(done.stdout)
    assert image["kernel_release"].startswith(kernel)
    assert image["python"].startswith(python)
    assert image["root_ext4"], image["notes"]
    run = ("run", "--embedded", "--backend", "qemu", "--timeout", "60s", "--json", "--")
    done = agentd(environment, *run, "sh", "-c", SHOW)
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)["stdout"].splitlines()
    assert lines[0] == image["kernel_release"]
    assert lines[1:] == [image["python"], "uid=1000(sandbox) gid=1000(sandbox)"]
