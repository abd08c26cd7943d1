"""An archive that a daemon sends, put into a file of the caller's: whole, or not at all."""

import os
from collections.abc import Iterator

from agentd.image.oci import push
from agentd.linux import process
from agentd.linux.replacing import replacing


def write(pieces: Iterator[bytes], path: str | os.PathLike[str]) -> None:
    """Write an archive of an image to ``path``; one that is there is replaced. Raises InvalidInput,
    ImageError, and what ``pieces`` raises."""
    place = os.path.abspath(os.fspath(path))
    push.check_archive(place)
    try:
        with replacing(place, 0o666 & ~process.umask(), synced=True) as file:
            for piece in pieces:
                file.write(piece)
    except OSError as error:
        raise push.unwritten(place, error) from error
