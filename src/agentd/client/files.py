"""Files inside a sandbox, as the SDK offers them."""

import errno
import os
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import msgspec

from agentd.client import arguments
from agentd.model import typed
from agentd.model.begun import begun
from agentd.model.errors import InvalidInput, OperationFailed

if TYPE_CHECKING:
    from agentd.client import ports
    from agentd.model.api import EntryView
    from agentd.transport.files import Change, Entry

MAX_READ = 256 << 20
InsidePath: TypeAlias = str | os.PathLike[str]


class Files:
    """Paths are those inside. Raises OperationFailed, with the kernel's errno, where refused."""

    def __init__(self, files: "ports.Files", sandbox: str) -> None:
        self._files = files
        self._sandbox = sandbox

    def read(self, path: InsidePath, offset: int = 0, length: int | None = None) -> bytes:
        """Read a file, or a part of it: at most 256 MiB at once; ``read_iter`` has no bound."""
        path = arguments.path(path)
        arguments.whole(offset, "offset", 0, arguments.MOST)
        if length is not None:
            arguments.whole(length, "length", 0, arguments.MOST)
        parts = bytearray()
        for piece in self._files.read(self._sandbox, path, offset, length):
            parts += piece
            if len(parts) > MAX_READ:
                raise OperationFailed(
                    f"{path}: over {MAX_READ} bytes to read at once",
                    remediation="read it in parts, by offset and length",
                )
        return bytes(parts)

    def read_iter(self, path: InsidePath) -> Generator[bytes, None, None]:
        """Read a file piece by piece, of any size."""
        return self._read_iter(path)

    def read_text(self, path: InsidePath, encoding: str = "utf-8") -> str:
        """Read a text file. Raises UnicodeDecodeError where it is not in ``encoding``, and
        InvalidInput where there is no such encoding."""
        arguments.text(encoding, "encoding", "name one, as utf-8")
        try:
            return self.read(path).decode(encoding)
        except LookupError:
            raise InvalidInput(
                f"there is no encoding {encoding!r} of texts",
                remediation="name one of Python's, as utf-8, latin-1 or utf-16",
            ) from None

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
        arguments.flags(parents=parents)
        return self._files.write(self._sandbox, path, content, mode=mode, parents=parents)

    def upload(
        self, host_path: str | os.PathLike[str], path: InsidePath, *, replace: bool = False
    ) -> int:
        """Copy a file or folder of this machine in, as a whole or not at all; bytes of its files.

        Into ``path`` where that is a folder or ends with a slash, else as ``path``. What is there
        already is refused; with ``replace`` it is ``path`` itself that is replaced. Links are
        copied as links, sockets are left out.
        """
        from agentd.client import copy

        arguments.flags(replace=replace)
        return copy.upload(
            self, arguments.host_path(host_path), arguments.path(path), replace=replace
        ).bytes

    def download(
        self, path: InsidePath, host_path: str | os.PathLike[str], *, replace: bool = False
    ) -> int:
        """Copy a file or folder of the sandbox out; as ``upload``, the other way round.

        Nothing is written outside of ``host_path``: a link that leads out of the folder is refused.
        """
        from agentd.client import copy

        arguments.flags(replace=replace)
        return copy.download(
            self, arguments.path(path), arguments.host_path(host_path), replace=replace
        ).bytes

    def list(self, path: InsidePath) -> "list[Entry]":
        """List a folder: each Entry has name, type, size, mode and the like."""
        folder = arguments.path(path)
        views = self._files.list(self._sandbox, folder)
        return [_entry(view, os.path.join(folder, view.name)) for view in views]

    def stat(self, path: InsidePath) -> "Entry":
        """Look at a file, folder or link itself. Raises OperationFailed where there is none."""
        path = arguments.path(path)
        return _entry(self._files.stat(self._sandbox, path), path)

    def exists(self, path: InsidePath) -> bool:
        """Tell whether there is something at ``path``, were it a link that leads nowhere.

        Raises OperationFailed where that cannot be seen.
        """
        try:
            self._files.stat(self._sandbox, arguments.path(path))
        except OperationFailed as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            raise
        return True

    def mkdir(self, path: InsidePath, *, mode: int = 0o755, parents: bool = False) -> None:
        """Make a folder; with ``parents`` those above it, and it may be there already."""
        path, mode = arguments.path(path), arguments.mode(mode)
        arguments.flags(parents=parents)
        self._files.mkdir(self._sandbox, path, mode=mode, parents=parents)

    def move(self, path: InsidePath, to: InsidePath) -> None:
        """Rename it; what is at ``to`` is replaced, as by rename(2)."""
        self._files.move(self._sandbox, arguments.path(path), arguments.path(to, "to"))

    def remove(self, path: InsidePath, *, recursive: bool = False) -> None:
        """Remove a file or an empty folder; with ``recursive`` all that is in it, too."""
        arguments.flags(recursive=recursive)
        self._files.remove(self._sandbox, arguments.path(path), recursive=recursive)

    def watch(
        self, path: InsidePath, *, recursive: bool = False
    ) -> "Generator[Change, None, None]":
        """Watch from now on: tell of changes, with ``kind`` and ``path``, until it is closed."""
        return begun(self._changes(path, recursive, -1))

    def _read_iter(self, path: InsidePath, wake: int = -1) -> Generator[bytes, None, None]:
        """``wake`` readable ends it, as of ``_watch``."""
        yield from self._files.read(self._sandbox, arguments.path(path), wake=wake)

    def _watch(
        self, path: InsidePath, recursive: bool = False, wake: int = -1
    ) -> "Generator[Change, None, None]":
        """Begin when it is first asked, so that a thread waits for that; ``wake`` as above."""
        yield from begun(self._changes(path, recursive, wake))

    def _changes(
        self, path: InsidePath, recursive: bool, wake: int
    ) -> "Generator[Change | None, None, None]":
        from agentd.transport.files import Change

        path = arguments.path(path)
        arguments.flags(recursive=recursive)
        found = self._files.watch(self._sandbox, path, recursive=recursive, wake=wake)
        yield None
        for change in found:
            yield Change(kind=change.kind, path=change.path)  # type: ignore[arg-type]

    def _read_tar(self, path: str) -> Iterator[bytes]:
        """Yield a tar of it, in pieces; its members begin with the last part of ``path``."""
        return self._files.read_tar(self._sandbox, path)

    def _write_tar(self, path: str, data: Iterable[bytes], *, replace: bool) -> None:
        """The one tree of a tar, as ``path``, or nothing."""
        self._files.write_tar(self._sandbox, path, data, whole=True, replace=replace)


def _entry(view: "EntryView", path: str) -> "Entry":
    from agentd.transport.files import Entry

    if isinstance(view, Entry):  # of this process's own agent
        return view
    return typed.convert({**msgspec.structs.asdict(view), "path": path}, Entry)
