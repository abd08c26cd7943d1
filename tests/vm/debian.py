"""Debian packages, downloaded once and unpacked without installing them."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

_KERNEL = "linux-image-cloud-amd64"
_DOWNLOAD_SECONDS = 120


class Unavailable(Exception):
    """What is missing to run a guest here; the text is the reason of the skip."""


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "agentd-tests"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"cannot make {folder}: {error.strerror}") from error
    return folder


def kernel() -> Path:
    """The bootable image of Debian's cloud kernel: virtual drivers built in. Raises Unavailable."""
    depends = _field(_KERNEL, "Depends")
    found = re.search(r"linux-image-[\w.+-]+-cloud-amd64", depends)
    if found is None:
        raise Unavailable(f"{_KERNEL} names no kernel: {depends!r}")
    name = found[0]
    return _unpacked(name) / "boot" / f"vmlinuz-{name.removeprefix('linux-image-')}"


def busybox() -> Path:
    """A shell and tools of one static program. Raises Unavailable."""
    return _unpacked("busybox-static") / "usr" / "bin" / "busybox"


def _unpacked(package: str) -> Path:
    """The package's tree, kept in the cache by the digest that apt's signed index gives it."""
    target = cache_dir() / f"{package}-{_field(package, 'SHA256')[:16]}"
    if target.is_dir():
        return target
    # Beside its final place, so that the rename is atomic and parallel runs do no harm.
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="download-") as folder:
        _run(["apt-get", "download", package], folder)
        archives = list(Path(folder).glob("*.deb"))
        if len(archives) != 1:
            raise Unavailable(f"apt-get download {package} gave {len(archives)} files")
        tree = Path(folder) / "tree"
        _run(["dpkg-deb", "-x", str(archives[0]), str(tree)], folder)
        try:
            tree.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target


def _field(package: str, name: str) -> str:
    text = _run(["apt-cache", "show", "--no-all-versions", package], "/")
    found = re.search(rf"^{name}: (.+)$", text, re.MULTILINE)
    if found is None:
        raise Unavailable(f"apt knows no {name} of {package}; run apt-get update")
    return found[1]


def _run(argv: list[str], folder: str) -> str:
    if shutil.which(argv[0]) is None:
        raise Unavailable(f"{argv[0]} is not installed")
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(argv)} took more than {error.timeout:g} s") from error
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{' '.join(argv)} failed: {error.stderr.strip()}") from error
    return done.stdout
