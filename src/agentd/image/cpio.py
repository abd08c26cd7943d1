"""Initramfs archives: cpio(5) "newc", as the kernel reads them (init/initramfs.c)."""

import os
import stat

from agentd.image.tree import FOLDER, ImageTree, TreeEntry
from agentd.model.errors import InvalidInput

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_ALIGN = 4
_HEADER = 110
# What the kernel takes: PATH_MAX with its NUL (init/initramfs.c, do_header).
_MAX_NAME = 4096


def write(tree: ImageTree, mtime: int = 0) -> bytes:
    """Write a tree; the same tree gives the same bytes. The kernel also takes several in a row."""
    parts = []
    for inode, (path, entry) in enumerate(tree.items(), start=1):
        parts += _pack(path.lstrip("/"), entry, inode, mtime)
    parts += _pack(_TRAILER, TreeEntry(0), 0, 0)
    return b"".join(parts)


def read(data: bytes) -> ImageTree:
    """Return the tree of one or more archives, later ones on top. Raises InvalidInput."""
    tree, at = ImageTree(), 0
    while at < len(data):
        if data[at] == 0:  # padding between archives
            at += 1
            continue
        name, entry, at = _unpack(data, at)
        if name != _TRAILER:
            _add(tree, "/" + name, entry)
    return tree


def _pack(name: str, entry: TreeEntry, inode: int, mtime: int) -> list[bytes]:
    encoded = os.fsencode(name) + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    size = len(entry.data)
    # ino, mode, uid, gid, nlink, mtime, filesize, device, special device, namesize, checksum
    numbers = (
        *(inode, entry.mode, entry.uid, entry.gid, links, mtime, size, 0, 0),
        *(*entry.device, len(encoded), 0),
    )
    header = _MAGIC + b"".join(b"%08x" % number for number in numbers) + encoded
    return [header, _padding(len(header)), entry.data, _padding(size)]


def _unpack(data: bytes, at: int) -> tuple[str, TreeEntry, int]:
    header = data[at : at + _HEADER]
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        raise InvalidInput(f"no cpio header at byte {at}", remediation="give a newc archive")
    try:
        numbers = [int(header[i : i + 8], 16) for i in range(6, _HEADER, 8)]
    except ValueError:
        raise InvalidInput(f"the cpio header at byte {at} is damaged") from None
    _, mode, uid, gid, _, _, size, _, _, major, minor, name_size, _ = numbers
    start = at + _HEADER
    body = _aligned(start + name_size)
    end = body + size
    if not 0 < name_size <= _MAX_NAME or end > len(data):
        raise InvalidInput(f"the cpio entry at byte {at} is cut off")
    name = os.fsdecode(data[start : start + name_size - 1])
    return name, TreeEntry(mode, data[body:end], uid, gid, (major, minor)), _aligned(end)


def _add(tree: ImageTree, path: str, entry: TreeEntry) -> None:
    kind = stat.S_IFMT(entry.mode)
    if kind == FOLDER:
        tree.folder(path, stat.S_IMODE(entry.mode), entry.uid, entry.gid)
    elif kind == stat.S_IFLNK:
        tree.link(path, os.fsdecode(entry.data))
    elif kind == stat.S_IFCHR:
        tree.device(path, *entry.device, stat.S_IMODE(entry.mode))
    else:
        tree.file(path, entry.data, stat.S_IMODE(entry.mode))


def _aligned(size: int) -> int:
    return size + -size % _ALIGN


def _padding(size: int) -> bytes:
    return b"\0" * (-size % _ALIGN)
