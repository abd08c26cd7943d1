"""An archive that a daemon sends, put into a file of the caller's: whole, or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from agentd.image.oci import push
from agentd.model.errors import InvalidInput


def write(pieces: Iterator[bytes], path: str | os.PathLike[str]) -> None:
    """Write an archive of an image to ``path``; one that is there is replaced. Raises InvalidInput,
    and what ``pieces`` raises."""
    place = os.path.abspath(os.fspath(path))
    push.check_archive(place)
    folder, name = os.path.split(place)
    partial = ""
    try:
        fd, partial = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        with open(fd, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fchmod(fd, 0o666 & ~push.umask())
            os.fsync(fd)
        os.replace(partial, place)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        if isinstance(error, OSError) and error.filename in (partial, folder):
            raise InvalidInput(
                f"{place} cannot be written: {error.strerror}",
                remediation="name a place that is yours, with room for the image",
            ) from error
        raise
