"""Initramfs archives (cpio(5), "newc") without root, device nodes or temporary trees."""

import os
import stat

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_ALIGN = 4


class Archive:
    """Entries belong to root; parents are made as needed. Paths are absolute, as in the guest."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._seen = {"/"}

    def directory(self, path: str) -> None:
        if path in self._seen:
            return
        self.directory(os.path.dirname(path))
        self._entry(path, stat.S_IFDIR | 0o755, b"", 0)

    def symlink(self, path: str, target: str) -> None:
        if path not in self._seen:
            self.directory(os.path.dirname(path))
            self._entry(path, stat.S_IFLNK | 0o777, target.encode(), 0)

    def file(self, path: str, data: bytes, mode: int = 0o644, mtime: int = 0) -> None:
        if path not in self._seen:
            self.directory(os.path.dirname(path))
            self._entry(path, stat.S_IFREG | mode, data, mtime)

    def copy(self, source: str, path: str) -> None:
        """With its time of change, by which Python knows whether a .pyc is current."""
        with open(source, "rb") as file:
            status = os.fstat(file.fileno())
            self.file(path, file.read(), 0o755 if status.st_mode & 0o111 else 0o644, _mtime(status))

    def finish(self) -> bytes:
        """The archive; the kernel also takes several, one after another."""
        parts = [*self._parts, _pack(_TRAILER, 0, b"", 0, 0)]
        return b"".join(parts)

    def _entry(self, path: str, mode: int, data: bytes, mtime: int) -> None:
        self._seen.add(path)
        self._parts.append(_pack(path.lstrip("/"), mode, data, mtime, len(self._seen)))


def _pack(name: str, mode: int, data: bytes, mtime: int, inode: int) -> bytes:
    encoded = name.encode() + b"\0"
    # ino, mode, uid, gid, nlink, mtime, filesize, 4 device numbers, namesize, checksum
    numbers = (inode, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = _MAGIC + b"".join(b"%08x" % number for number in numbers)
    return _padded(header + encoded) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGN)


def _mtime(status: os.stat_result) -> int:
    return int(status.st_mtime) & 0xFFFFFFFF
