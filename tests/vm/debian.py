"""Debian packages, downloaded once and unpacked without installing them."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from agentd.image.merged import merge
from agentd.image.modules import Modules
from agentd.model import errors

_KERNEL = "linux-image-cloud-amd64"
_DOWNLOAD_SECONDS = 500


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
    depends = field(_KERNEL, "Depends")
    found = re.search(r"linux-image-[\w.+-]+-cloud-amd64", depends)
    if found is None:
        raise Unavailable(f"{_KERNEL} names no kernel: {depends!r}")
    name = found[0]
    return unpacked(name) / "boot" / f"vmlinuz-{name.removeprefix('linux-image-')}"


def modules(kernel_: Path, *names: str) -> dict[str, bytes]:
    """Name of the file -> content, in the order in which they are loaded, with what they need.

    What is built in is left out. Raises Unavailable.
    """
    release = kernel_.name.removeprefix("vmlinuz-")
    found = Modules(str(kernel_.parent.parent / "usr/lib/modules" / release))
    try:
        tree = found.tree(release, names, names)
    except errors.Unavailable as error:
        raise Unavailable(str(error)) from error
    top = f"/usr/lib/modules/{release}"
    return {Path(path).name: tree[f"{top}/{path}"].data for path in found.in_order(names)}


def busybox() -> Path:
    """A shell and tools of one static program. Raises Unavailable."""
    return unpacked("busybox-static") / "usr" / "bin" / "busybox"


def unpacked(package: str, options: Sequence[str] = ()) -> Path:
    """The package's tree, kept in the cache by the digest that apt's signed index gives it.

    ``options`` are apt's. Raises Unavailable.
    """
    target = cache_dir() / f"{package}-{field(package, 'SHA256', options)[:16]}"
    if target.is_dir():
        merge(str(target))  # an older test's
        return target
    # Beside its final place, so that the rename is atomic and parallel runs do no harm.
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="download-") as folder:
        _run(["apt-get", *options, "download", package], folder)
        archives = list(Path(folder).glob("*.deb"))
        if len(archives) != 1:
            raise Unavailable(f"apt-get download {package} gave {len(archives)} files")
        tree = Path(folder) / "tree"
        _run(["dpkg-deb", "-x", str(archives[0]), str(tree)], folder)
        merge(str(tree))
        try:
            tree.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target


def field(package: str, name: str, options: Sequence[str] = ()) -> str:
    """What apt's index says of the package's candidate. Raises Unavailable."""
    text = _run(["apt-cache", *options, "show", "--no-all-versions", package], "/")
    found = re.search(rf"^{name}: (.+)$", text, re.MULTILINE)
    if found is None:
        raise Unavailable(f"apt knows no {name} of {package}; run apt-get update")
    return found[1]


def names(prefix: str, options: Sequence[str] = ()) -> list[str]:
    """Of all packages that begin so. Raises Unavailable."""
    return _run(["apt-cache", *options, "pkgnames", prefix], "/").split()


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
