"""Files inside a sandbox, as the SDK offers them."""

import errno
import os
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from agentd.client import arguments
from agentd.model.errors import OperationFailed

if TYPE_CHECKING:
    from agentd.transport.files import Change, Entry

InsidePath: TypeAlias = str | os.PathLike[str]


class Files:
    """Paths are those inside. Raises OperationFailed, with the kernel's errno, where refused."""

    def __init__(self, files: Any) -> None:
        self._files = files

    def read(self, path: InsidePath, offset: int = 0, length: int | None = None) -> bytes:
        """Read a file, or a part of it: at most 256 MiB at once; ``read_iter`` has no bound."""
        path = arguments.path(path)
        arguments.whole(offset, "offset", 0, arguments.MOST)
        if length is not None:
            arguments.whole(length, "length", 0, arguments.MOST)
        return bytes(self._files.read(path, offset, length))

    def read_iter(self, path: InsidePath) -> Generator[bytes, None, None]:
        """Read a file piece by piece, of any size."""
        return self._read_iter(path)

    def read_text(self, path: InsidePath, encoding: str = "utf-8") -> str:
        """Read a text file. Raises UnicodeDecodeError where it is not in ``encoding``."""
        return self.read(path).decode(encoding)

    def write(
        self,
        path: InsidePath,
        data: bytes | str | Iterable[bytes] | BinaryIO,
        *,
        mode: int = 0o644,
        parents: bool = False,
    ) -> int:
        """Write the whole file or none of it; ``parents`` are made. Return its size in bytes."""
        path, content = arguments.path(path), arguments.content(data)
        arguments.mode(mode)
        return int(self._files.write(path, content, mode=mode, parents=parents))

    def upload(
        self, host_path: str | os.PathLike[str], path: InsidePath, *, replace: bool = False
    ) -> int:
        """Copy a file or folder of this machine in, as a whole or not at all; bytes of its files.

        Into ``path`` where that is a folder or ends with a slash, else as ``path``. What is there
        already is refused; with ``replace`` it is ``path`` itself that is replaced. Links are
        copied as links, sockets are left out.
        """
        from agentd.client import copy

        return copy.upload(
            self._files, arguments.host_path(host_path), arguments.path(path), replace=replace
        ).bytes

    def download(
        self, path: InsidePath, host_path: str | os.PathLike[str], *, replace: bool = False
    ) -> int:
        """Copy a file or folder of the sandbox out; as ``upload``, the other way round.

        Nothing is written outside of ``host_path``: a link that leads out of the folder is refused.
        """
        from agentd.client import copy

        return copy.download(
            self._files, arguments.path(path), arguments.host_path(host_path), replace=replace
        ).bytes

    def list(self, path: InsidePath) -> "list[Entry]":
        """List a folder: each Entry has name, type, size, mode and the like."""
        entries: list[Entry] = self._files.list(arguments.path(path))
        return entries

    def stat(self, path: InsidePath) -> "Entry":
        """Look at a file, folder or link itself. Raises OperationFailed where there is none."""
        entry: Entry = self._files.stat(arguments.path(path))
        return entry

    def exists(self, path: InsidePath) -> bool:
        """Tell whether there is something at ``path``, were it a link that leads nowhere.

        Raises OperationFailed where that cannot be seen.
        """
        try:
            self._files.stat(arguments.path(path))
        except OperationFailed as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            raise
        return True

    def mkdir(self, path: InsidePath, *, mode: int = 0o755, parents: bool = False) -> None:
        """Make a folder; with ``parents`` those above it, and it may be there already."""
        self._files.mkdir(arguments.path(path), mode=arguments.mode(mode), parents=parents)

    def move(self, path: InsidePath, to: InsidePath) -> None:
        """Rename it; what is at ``to`` is replaced, as by rename(2)."""
        self._files.move(arguments.path(path), arguments.path(to, "to"))

    def remove(self, path: InsidePath, *, recursive: bool = False) -> None:
        """Remove a file or an empty folder; with ``recursive`` all that is in it, too."""
        self._files.remove(arguments.path(path), recursive=recursive)

    def watch(
        self, path: InsidePath, *, recursive: bool = False
    ) -> "Generator[Change, None, None]":
        """Tell of changes, with ``kind`` and ``path``, as they happen, until it is closed."""
        return self._watch(path, recursive)

    def _read_iter(self, path: InsidePath, wake: int = -1) -> Generator[bytes, None, None]:
        """``wake`` readable ends it, as of ``_watch``."""
        yield from self._files.read_iter(arguments.path(path), wake=wake)

    def _watch(
        self, path: InsidePath, recursive: bool, wake: int = -1
    ) -> "Generator[Change, None, None]":
        yield from self._files.watch(arguments.path(path), recursive=recursive, wake=wake)
