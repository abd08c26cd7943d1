"""Blobs that are in the store already: offered to skopeo, which then does not fetch them.

It asks a layout whether it has a blob, by its name and size. So a hole of that size stands for
each: what fetches sees nothing of other images, and what is taken afterwards is the store's own,
hashed.
"""

import contextlib
import os
from collections.abc import Mapping

from agentd.image.model import Corrupt
from agentd.image.oci import cell, layout
from agentd.image.oci.store import OciStore
from agentd.image.oci.values import Descriptor


def sizes(store: OciStore) -> dict[str, int]:
    """Return the sizes of the blobs that are there, in bytes, by their 64 hex digits."""
    found, folder = {}, layout.blobs_of(store.folder)
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # removed just now
                found[name] = os.lstat(os.path.join(folder, name)).st_size
    return found


def offer(here: Mapping[str, int], path: str) -> None:
    """Make a layout's folder of blobs in ``path``, an empty one, with a hole for each."""
    folder = path
    for part in layout.BLOBS:
        folder = os.path.join(folder, part)
        os.mkdir(folder, 0o700)
        _give(folder)
    for name, size in here.items():
        hole = os.path.join(folder, name)
        with open(hole, "xb") as file:
            file.truncate(size)
        _give(hole)


def link(store: OciStore, blob: Descriptor, place: str) -> bool:
    """Give a blob a second name, ``place``, and hash it; False where it is gone or damaged."""
    try:
        os.link(store.blob_path(blob.digest), place, follow_symlinks=False)
        with layout.folder(os.path.dirname(place)) as folder:
            layout.check_blob(blob, folder)
    except (FileNotFoundError, Corrupt):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)
        return False
    return True


def _give(path: str) -> None:
    """To whom skopeo runs as."""
    if cell.own_user():
        os.chown(path, cell.USER, cell.USER)
