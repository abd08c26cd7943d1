"""What kind of image an archive on disk holds, by the names in it."""

import os
import stat
import tarfile

# Of what skopeo and docker save write; a longer one is told by its first.
_MOST_ENTRIES = 10_000
_KINDS = {
    "oci-layout": "oci-archive",
    "index.json": "oci-archive",
    "manifest.json": "docker-archive",
}


def kinds(path: str) -> frozenset[str]:
    """Return the transports that read the archive: both, where docker save wrote it; none for what
    is no tar archive of an image, or is compressed. Raises OSError."""
    found = set()
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return frozenset()
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for _, info in zip(range(_MOST_ENTRIES), archive, strict=False):
                    found.add(_KINDS.get(os.path.normpath(info.name), ""))
        except (tarfile.TarError, ValueError, OverflowError):
            pass  # what was read of it counts
    return frozenset(found - {""})
