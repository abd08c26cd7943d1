"""What lies in a root, as who has it for a root sees it: no name leads out of it."""

import errno
import os
import stat
from collections.abc import Callable, Iterable
from typing import NamedTuple

from agentd.linux.paths import open_inside

_MAX_LINKS = 40
MAX_SMALL = 1 << 20
_FILE = os.O_RDONLY | os.O_NONBLOCK  # what is no plain file is not waited for


class Node(NamedTuple):
    """``kind`` is as stat.S_IFMT has it; ``target`` is a link's."""

    kind: int
    target: str = ""


class LinkCircle(ValueError):
    pass


def node_at(root: int, path: str) -> Node | None:
    """Return what is right there, no link at its end followed; None for nothing."""
    try:
        fd = open_inside(root, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        return Node(kind, os.readlink("", dir_fd=fd) if kind == stat.S_IFLNK else "")
    finally:
        os.close(fd)


def read_small(root: int, path: str) -> str:
    """Read a plain file, of 1 MiB at most; empty for anything else. Raises OSError where nothing
    can be opened here."""
    try:
        fd = open_inside(root, path, _FILE)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EMFILE, errno.ENFILE):
            raise
        return ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_SMALL).decode("utf-8", "replace")
    finally:
        os.close(fd)


class Layered:
    """A root with folders of ours on top, as who has both for a root sees it: a folder, and those
    above it, hide the root's links and files. Called as ``node_at``."""

    def __init__(self, root: int, folders: Iterable[str]) -> None:
        """``root`` stays the caller's."""
        self._root = root
        self._folders: set[str] = set()
        self._hidden: set[str] = set()
        for path in folders:
            self.add(path)

    def add(self, path: str) -> None:
        parts = path.strip("/").split("/")
        for count in range(1, len(parts) + 1):
            above = "/".join(parts[:count])
            node = self(above)
            if node is not None and node.kind != stat.S_IFDIR:
                self._hidden.add(f"{above}/")
            self._folders.add(above)

    def __call__(self, path: str) -> Node | None:
        if not path or path in self._folders:
            return Node(stat.S_IFDIR)
        if path.startswith(tuple(self._hidden)):
            return None
        return node_at(self._root, path)

    def folder(self, path: str) -> str | None:
        """Return the path of a folder behind the links that lead to it; None where there is
        none."""
        try:
            found = behind_links(path.strip("/"), self)
        except LinkCircle:
            return None
        node = self(found)
        return f"/{found}" if node is not None and node.kind == stat.S_IFDIR else None


def behind_links(path: str, find: Callable[[str], Node | None], *, last: bool = True) -> str:
    """Return the path without slashes around it, with links on the way replaced by where they lead
    in the root, and with ``last`` one at its end, too. A part that is not there is what it is
    called.

    ``find`` is as ``node_at``. Raises LinkCircle.
    """
    done: list[str] = []
    parts = path.split("/")
    links = 0
    while len(parts) > (not last):
        part = parts.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            done = done[:-1]
            continue
        node = find("/".join([*done, part]))
        if node is None or node.kind != stat.S_IFLNK:
            done.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise LinkCircle(path)
        done = [] if node.target.startswith("/") else done
        parts = [*node.target.split("/"), *parts]
    return "/".join([*done, *parts])
