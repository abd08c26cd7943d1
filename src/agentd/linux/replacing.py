"""Files that are replaced whole: who reads one sees what it was, or all of what it becomes."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

_ALONE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def replacing(
    path: str, mode: int, *, alone: bool = False, synced: bool = False
) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path``, with that mode whatever the umask, once the
    block has ended, or is removed where it fails. Raises OSError.

    ``alone``: nobody else replaces it now, and what one who was killed left half written goes.
    ``synced``: what it holds is on disk before it takes the place.
    """
    fd, partial = _alone(f"{path}.new") if alone else _beside(path)
    try:
        with open(fd, "wb") as file:
            yield file
            os.fchmod(fd, mode)
            file.flush()
            if synced:
                os.fsync(fd)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise


def _alone(partial: str) -> tuple[int, str]:
    # What is there is not written into: it may be open elsewhere.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial)
    return os.open(partial, _ALONE, 0o600), partial


def _beside(path: str) -> tuple[int, str]:
    return tempfile.mkstemp(prefix=".new-", dir=os.path.dirname(os.path.abspath(path)))
