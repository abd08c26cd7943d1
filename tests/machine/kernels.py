"""Kernels of Debian's releases, downloaded once and unpacked without being installed."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.vm import debian
from tests.vm.debian import Unavailable
from tests.vm.suites import apt_config

_META = "linux-image-amd64"  # the generic one: the cloud's has no KVM
_REAL = re.compile(r"linux-image-((\d[\d.]*)[\w.+-]*-amd64)")
_FLAVOUR = re.compile(r"-(cloud|rt)-amd64|-unsigned")
# Where a line of Linux is to be had; all others are looked for in the newest release's backports.
_SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie"}
_BACKPORTS = "trixie-backports"


@dataclass(frozen=True)
class Kernel:
    """``modules`` is its /usr/lib/modules/RELEASE, unpacked."""

    release: str
    image: Path
    modules: Path


def kernel(line: str = "") -> Kernel:
    """Debian's generic kernel: ``line`` is such as "6.1"; this machine's own apt's by default.

    Raises Unavailable.
    """
    options = ("-c", apt_config(_SUITES.get(line, _BACKPORTS))) if line else ()
    name = _newest(line, options) if line else _named(debian.field(_META, "Depends"))
    # Since Linux 7.0 Debian has image and modules in packages of their own.
    trees = [debian.unpacked(name, options)]
    if not (trees[0] / "boot").is_dir():
        parts = (name.replace("-image-", f"-{part}-", 1) for part in ("binary", "modules"))
        trees = [debian.unpacked(part, options) for part in parts]
    release = name.removeprefix("linux-image-")
    tops = [tree / top for tree in trees for top in ("usr/lib/modules", "lib/modules")]
    folders = [top / release for top in tops]
    images = [tree / "boot" / f"vmlinuz-{release}" for tree in trees]
    image = _first([*images, *(folder / "vmlinuz" for folder in folders)])
    return Kernel(release, image, _first([folder / "kernel" for folder in folders]).parent)


def _named(depends: str) -> str:
    found = _REAL.search(depends)
    if found is None:
        raise Unavailable(f"{_META} names no kernel: {depends!r}")
    return found[0]


def _newest(line: str, options: tuple[str, ...]) -> str:
    """The last release of a line that the suite has."""
    found: dict[tuple[int, ...], str] = {}
    for name in debian.names(f"linux-image-{line}", options):
        match = _REAL.fullmatch(name)
        if match is None or _FLAVOUR.search(name):
            continue
        version = tuple(int(part) for part in match[2].strip(".").split("."))
        if version[: line.count(".") + 1] == tuple(map(int, line.split("."))):
            # 6.1.0-50 differs from 6.1.0-49 behind its version alone.
            numbers = tuple(map(int, re.findall(r"\d+", match[1])))
            found[numbers] = name
    if not found:
        raise Unavailable(f"Debian has no linux-image-{line}* there")
    return found[max(found)]


def _first(paths: list[Path]) -> Path:
    for path in paths:
        if path.exists():
            return path
    raise Unavailable(f"a package of the kernel has no {paths[0].name}")
