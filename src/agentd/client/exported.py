"""An archive that a daemon sends, put into a file of the caller's: whole, or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from agentd.image.oci import push


def write(pieces: Iterator[bytes], path: str | os.PathLike[str]) -> None:
    """Write an archive of an image to ``path``; one that is there is replaced. Raises InvalidInput,
    ImageError, and what ``pieces`` raises."""
    place = os.path.abspath(os.fspath(path))
    push.check_archive(place)
    folder, name = os.path.split(place)
    try:
        fd, partial = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    except OSError as error:
        raise push.unwritten(place, error) from error
    try:
        with open(fd, "wb") as file:
            for piece in pieces:
                _write(file.fileno(), piece, place)
            os.fchmod(fd, 0o666 & ~push.umask())
            os.fsync(fd)
        os.replace(partial, place)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise


def _write(fd: int, piece: bytes, place: str) -> None:
    rest = memoryview(piece)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except OSError as error:
            raise push.unwritten(place, error) from error
