"""What images take on disk, with all that is kept beside them to start machines faster."""

import os
import shutil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from agentd.image.store import Store


class Part(NamedTuple):
    """Says what takes ``bytes`` on disk: ``what``, for a person."""

    what: str
    bytes: int


def parts(store: "Store") -> list[Part]:
    """List those that take anything."""
    from agentd.sandbox.backends.vm.template import default_folder

    builds = os.path.join(store.folder, ".builds")
    named = {os.path.basename(os.readlink(os.path.join(store.folder, n))) for n in store.ls()}
    images = [os.path.join(builds, name) for name in _names(builds)]
    kept = [os.path.join(store.folder, name) for name in (".apt", ".packages", ".parts")]
    found = [
        Part("images", _sum([path for path in images if os.path.basename(path) in named])),
        Part("replaced images", _sum([p for p in images if os.path.basename(p) not in named])),
        Part("packages", _sum(kept)),
        Part("machines ready to be restored", _sum([default_folder()])),
    ]
    return [part for part in found if part.bytes]


def prune(store: "Store") -> int:
    """Remove all but the images: it is made anew when it is needed. The bytes that it took."""
    from agentd.sandbox.backends.vm.template import Templates

    before = sum(part.bytes for part in parts(store))
    with store.locked():
        store.clean()
        for name in (".apt", ".packages", ".parts"):
            shutil.rmtree(os.path.join(store.folder, name), ignore_errors=True)
    Templates().clear()
    return before - sum(part.bytes for part in parts(store))


def on_disk(path: str) -> int:
    """Count the bytes that a file or folder takes on disk, holes left out."""
    try:
        total = os.lstat(path).st_blocks * 512
    except OSError:
        return 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except OSError:  # gone meanwhile
                continue
    return total


def _sum(paths: list[str]) -> int:
    return sum(map(on_disk, paths))


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
