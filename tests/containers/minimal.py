"""A minimal Debian with the wheel in it, as a container has it: no compiler, no libatomic.

The root and what agentd depends on are made once for this machine, and kept beside what other tests
download.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.vm.debian import Unavailable, cache_dir

_CHECKOUT = Path(__file__).resolve().parents[2]
_SUITE, _PYTHON = "trixie", "3.13"
_GLIBC = range(5, 42)  # minor versions, up to that of the suite
_CANNOT = 77  # debian-root's own word
_SECONDS = 800
_VENV = "opt/venv"


@contextlib.contextmanager
def root() -> Iterator[Path]:
    """A folder with the wheel of this checkout in /opt/venv. Raises Unavailable."""
    if os.getuid() != 0:
        raise Unavailable("a root for containers needs uid 0")
    base = cache_dir() / "container"
    _sweep(base)
    _debian(base)
    with tempfile.TemporaryDirectory(dir=base.parent, prefix=f"container-{os.getpid()}-") as name:
        folder = Path(name)
        wheel = _wheel(folder)
        with open(f"{base}.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests makes the same
            _with_dependencies(base, wheel)
            # Links: what is written from here on is written beside them.
            _run("cp", "-al", str(base), str(folder / "root"))
        shutil.copy(wheel, folder / "root")
        _pip(folder / "root", f"/{wheel.name}")
        (folder / "root").chmod(0o755)
        yield folder / "root"


def _sweep(base: Path) -> None:
    """Removes what a run that was killed has left."""
    for path in base.parent.glob("container-*-*"):
        if not Path("/proc", path.name.split("-")[1]).exists():
            shutil.rmtree(path, ignore_errors=True)


def _debian(base: Path) -> None:
    done = subprocess.run(
        [_CHECKOUT / "scripts/debian-root", _SUITE, base, "python3", "python3-venv"],
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    if done.returncode == _CANNOT:
        raise Unavailable(done.stderr.strip())
    assert done.returncode == 0, done.stderr


def _wheel(folder: Path) -> Path:
    _host_pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(_CHECKOUT))
    (wheel,) = folder.glob("*.whl")
    return wheel


def _with_dependencies(base: Path, wheel: Path) -> None:
    key = _requirements(wheel)
    made_of = base / _VENV / "made-of"
    if made_of.exists() and made_of.read_text() == key:
        return
    shutil.rmtree(base / _VENV, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=base / "opt", prefix="wheels-") as name:
        machine = os.uname().machine
        platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC]
        platforms.append(f"manylinux2014_{machine}")
        _host_pip(
            "download",
            *("--dest", name, "--only-binary", ":all:", "--python-version", _PYTHON),
            *(word for each in platforms for word in ("--platform", each)),
            str(wheel),
        )
        _run("chroot", str(base), "python3", "-m", "venv", f"/{_VENV}")
        others = [path for path in Path(name).iterdir() if path.name != wheel.name]
        _pip(base, *(str(Path("/", path.relative_to(base))) for path in others))
    made_of.write_text(key)


def _requirements(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().split("\n\n")[0].splitlines()
    wanted = sorted(line for line in lines if line.startswith("Requires-Dist:"))
    return hashlib.sha256("\n".join([_PYTHON, *wanted]).encode()).hexdigest()


def _host_pip(*words: str) -> None:
    try:
        _run(sys.executable, "-m", "pip", "-q", *words)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"pip {words[0]} failed: {error.stderr.strip()[-400:]}") from error


def _pip(base: Path, *wheels: str) -> None:
    pip = f"/{_VENV}/bin/pip"
    _run("chroot", str(base), pip, "-q", "install", "--no-index", "--no-deps", *wheels)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True, timeout=_SECONDS)
