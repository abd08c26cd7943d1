"""Hands the layers of an image over to umoci while they are decompressed and measured.

So no layer is decompressed twice, one time after the other. A layout has a pipe (fifo(7)) in the
place of each archive, and no piece goes into it before it was counted. umoci wants to know how much
comes: a layer says so itself, but for some (of several parts, over 4 GiB), which are misjudged
(ADR 54).
"""

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Iterator, Sequence

import zstandard

from agentd.image.model import ImageError
from agentd.image.oci.bounds import ImageBounds, measure
from agentd.image.oci.values import LAYER, Descriptor, check_digest

#: Bytes of all archives: so much may lie unpacked of an image that is refused then.
MOST = 2 << 30
# Bytes that wait for umoci to begin.
_AHEAD = 16 << 20
_PIPE_BYTES = 1 << 20
_PAUSE = 0.002
_ZSTD_HEADER = 18


class Misjudged(Exception):
    """An archive has another size than its layer says."""


class _Ended(Exception):
    """Nobody reads any more, or is to."""


def told_size(path: str, media_type: str) -> int:
    """Return of how many bytes a layer says that its archive is; -1 where it does not. Raises
    OSError."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if media_type == LAYER:
            return size
        if media_type == f"{LAYER}+gzip":
            file.seek(max(0, size - 4))
            return int.from_bytes(file.read(4), "little")
        file.seek(0)
        try:
            return zstandard.frame_content_size(file.read(_ZSTD_HEADER))
        except zstandard.ZstdError:
            return -1


class Handover:
    """Owns the thread that writes, from ``with`` to its end. ``layers`` are in the folder
    ``packed``, each with the archive that comes of it; the pipes are made in ``blobs``."""

    def __init__(
        self,
        packed: str,
        blobs: str,
        layers: Sequence[tuple[Descriptor, Descriptor]],
        bounds: ImageBounds,
    ) -> None:
        """Makes the pipes. Raises OSError."""
        #: Why it ended before all was written; None where nobody read on.
        self.error: Exception | None = None
        self.complete = False
        self._packed, self._blobs, self._layers, self._bounds = packed, blobs, layers, bounds
        self._fd, self._path, self._left = -1, "", 0
        self._ahead: list[bytes] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="handover", daemon=True)
        for _, archive in layers:
            os.mkfifo(self._place(archive), 0o644)

    def __enter__(self) -> "Handover":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Who reads has ended: so does the thread."""
        self._stopped.set()
        self._thread.join()

    def _place(self, archive: Descriptor) -> str:
        return os.path.join(self._blobs, check_digest(archive.digest))

    def _run(self) -> None:
        try:
            measure(self._each(), self._bounds, self._hand)
            self.complete = True
        except (_Ended, BrokenPipeError):
            pass
        except (Misjudged, ImageError, OSError) as error:
            self.error = error
        except Exception as error:
            self.error = ImageError("a layer cannot be read", cause=repr(error))
        finally:
            self._close()
        while not (self.complete or self._stopped.wait(_PAUSE)):
            for (
                _,
                archive,
            ) in self._layers:  # umoci may wait for us at any: it sees an end, and fails
                with contextlib.suppress(OSError):
                    os.close(os.open(self._place(archive), os.O_WRONLY | os.O_NONBLOCK))

    def _each(self) -> Iterator[tuple[str, str]]:
        """Yields path and media type of each, and has its pipe until the next is asked for."""
        for layer, archive in self._layers:
            self._path, self._left = self._place(archive), archive.size
            yield os.path.join(self._packed, check_digest(layer.digest)), layer.media_type
            if self._left:
                raise Misjudged
            while not self._opened():
                self._stopped.wait(_PAUSE)
            self._write()
            self._close()

    def _hand(self, piece: bytes) -> None:
        self._left -= len(piece)
        if self._left < 0:
            raise Misjudged
        self._ahead.append(piece)
        while not self._opened():
            if sum(map(len, self._ahead)) < _AHEAD:
                return
            self._stopped.wait(_PAUSE)
        self._write()

    def _opened(self) -> bool:
        """Whether umoci has its end open."""
        if self._fd >= 0:
            return True
        if self._stopped.is_set():
            raise _Ended
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return False
        os.set_blocking(self._fd, True)
        with contextlib.suppress(OSError):  # of a user with many: it is as large as usual
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return True

    def _write(self) -> None:
        for piece in self._ahead:
            left = memoryview(piece)
            while left:
                left = left[os.write(self._fd, left) :]
        self._ahead.clear()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
