"""A file tree in memory, as a guest sees it: no root, device nodes or temporary copies needed."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

FILE, FOLDER, LINK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """``mode`` as in stat(2). ``data`` is a file's content or a link's target."""

    mode: int
    data: bytes = b""
    uid: int = 0
    gid: int = 0
    device: tuple[int, int] = (0, 0)


class ImageTree:
    """Paths are absolute and normal; parents are made as needed, and belong to root."""

    def __init__(self) -> None:
        self._entries: dict[str, TreeEntry] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def __getitem__(self, path: str) -> TreeEntry:
        return self._entries[path]

    def items(self) -> Iterator[tuple[str, TreeEntry]]:
        """List them sorted, so that a folder comes before what it holds."""
        for path in sorted(self._entries):
            yield path, self._entries[path]

    def folder(self, path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        self._put(path, TreeEntry(FOLDER | mode, uid=uid, gid=gid))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._put(path, TreeEntry(FILE | mode, data))

    def link(self, path: str, target: str) -> None:
        self._put(path, TreeEntry(LINK | 0o777, os.fsencode(target)))

    def device(self, path: str, major: int, minor: int, mode: int) -> None:
        self._put(path, TreeEntry(stat.S_IFCHR | mode, device=(major, minor)))

    def update(self, other: "ImageTree") -> None:
        for path, entry in other.items():
            self._put(path, entry)

    def copy(self, source: str, path: str, keep: Callable[[str], bool] = lambda _: True) -> None:
        """Copy a file, link or folder of the host. ``keep`` judges paths relative to a folder."""
        if os.path.islink(source):
            self.link(path, os.readlink(source))
        elif os.path.isdir(source):
            for name in sorted(os.listdir(source)):
                self._copy_below(source, name, path, keep)
        else:
            with open(source, "rb") as file:
                executable = os.fstat(file.fileno()).st_mode & 0o111
                self.file(path, file.read(), 0o755 if executable else 0o644)

    def _copy_below(self, top: str, inner: str, path: str, keep: Callable[[str], bool]) -> None:
        if not keep(inner):
            return
        source = os.path.join(top, inner)
        if os.path.isdir(source) and not os.path.islink(source):
            for name in sorted(os.listdir(source)):
                self._copy_below(top, f"{inner}/{name}", path, keep)
        else:
            self.copy(source, f"{path}/{inner}")

    def _put(self, path: str, entry: TreeEntry) -> None:
        parent = os.path.dirname(path)
        if parent != "/" and parent not in self._entries:
            self.folder(parent)
        self._entries[path] = entry
