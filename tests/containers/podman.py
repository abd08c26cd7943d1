"""Containers as people have them, by podman and the runtime that is here."""

import contextlib
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.vm.debian import Unavailable

_SECONDS = 800
_PATH = "/usr/bin:/usr/sbin:/bin:/sbin"


class Podman:
    """Starts containers of one root; each has a layer of its own above it."""

    def __init__(self, root: Path, store: Path) -> None:
        self._root = root
        self._store = store

    def run(self, options: Sequence[str], argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """The container is gone when it returns."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return subprocess.run(
            [
                "podman",
                *("--root", str(self._store / "root"), "--runroot", str(self._store / "run")),
                *("--tmpdir", str(self._store / "tmp"), "--storage-driver", "vfs"),
                *("--runtime", _runtime(), "--cgroup-manager", "cgroupfs"),
                *("--events-backend", "none", "--log-level", "error"),
                *("run", "--rm", "--network", "none", "--log-driver", "none"),
                # Its own defaults are above what this process may have.
                *("--ulimit", f"nofile=1024:{most}", "--ulimit", "nproc=4096:4096"),
                *options,
                *("--rootfs", f"{self._root}:O"),
                *argv,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )


@contextlib.contextmanager
def podman(root: Path) -> Iterator[Podman]:
    """Raises Unavailable where it cannot start a container."""
    if shutil.which("podman", path=_PATH) is None:
        raise Unavailable("podman is not installed")
    # A short name: podman refuses a runroot of more than 50 characters.
    name = tempfile.mkdtemp(prefix="pod-")
    try:
        engine = Podman(root, Path(name))
        tried = engine.run((), ["true"])
        if tried.returncode:
            raise Unavailable(f"podman starts no container: {tried.stderr.strip()[-400:]}")
        yield engine
    finally:
        _remove(name)


def _remove(name: str) -> None:
    """Removes podman's folder, into which what cleans up behind a container may still write."""
    end = time.monotonic() + 30
    while True:
        try:
            return shutil.rmtree(name)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _runtime() -> str:
    # crun refuses hybrid control groups.
    for name in ("runc", "crun"):
        if path := shutil.which(name, path=_PATH):
            return path
    raise Unavailable("neither runc nor crun is installed")
