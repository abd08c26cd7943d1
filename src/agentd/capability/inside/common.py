"""What the scripts share: how one is called and fails, and how a path is opened."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Callable
from typing import Any

_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Failed(Exception):
    """``code`` is for the caller's program; the message names the thing, ``fix`` is the way out."""

    def __init__(self, code: str, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.fix = fix


def answer(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Give one JSON object from stdin to ``work``, and write its value or error to stdout."""
    try:
        value = work(json.load(sys.stdin.buffer))
    except Failed as error:
        value = failure(error.code, str(error), error.fix)
    except OSError as error:
        code = "disk_full" if error.errno in _NO_ROOM else "io_error"
        value = failure(code, error.strerror or str(error))
    except MemoryError:
        value = failure("too_large", "it takes more memory than there is", "ask for less")
    sys.stdout.write(json.dumps(value, allow_nan=False))


def failure(code: str, message: str, fix: str = "") -> dict[str, Any]:
    # A lone surrogate, from bytes that are not UTF-8, is no JSON that everybody reads.
    shown = message.encode(errors="replace").decode()
    return {"error": {"code": code, "message": shown, "remediation": fix}}


def open_parent(root: str, path: str) -> tuple[int, str]:
    """(a descriptor of the directory that ``path`` is in, its last part).

    Symbolic links are followed in ``root``, which the daemon chose, and nowhere below it: a policy
    that allows a path must not be led elsewhere. Raises Failed: "bad_path",
    "not_found", "link".
    """
    start = root if path.startswith(root.rstrip("/") + "/") else "/"
    parts = [part for part in path[len(start) :].split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in path:
        raise Failed("bad_path", f"{path!r} has '..' or names no entry", "write it out")
    place = os.open(start, _PLACE & ~os.O_NOFOLLOW)
    for part in parts[:-1]:
        try:
            inner = _enter(place, part, path)
        finally:
            os.close(place)
        place = inner
    return place, parts[-1]


def _enter(place: int, part: str, path: str) -> int:
    try:
        return os.open(part, _PLACE, dir_fd=place)
    except OSError as error:
        if error.errno == errno.ENOTDIR and _is_link(place, part):
            raise linked(path) from None
        raise Failed("not_found", f"{path}: {error.strerror}") from None


def _is_link(place: int, part: str) -> bool:
    return stat.S_ISLNK(os.lstat(part, dir_fd=place).st_mode)


def linked(path: str) -> Failed:
    return Failed("link", f"{path} leads through a symbolic link", "name the place itself")


def open_file(root: str, path: str) -> int:
    """A descriptor to read a regular file with. Raises Failed: also "not_a_file"."""
    place, name = open_parent(root, path)
    try:
        # Not blocking: a pipe would wait for who writes to it.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        fd = os.open(name, flags, dir_fd=place)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise linked(path) from None
        code = "not_readable" if error.errno == errno.EACCES else "not_found"
        raise Failed(code, f"{path}: {error.strerror}") from None
    finally:
        os.close(place)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Failed("not_a_file", f"{path} is no regular file")
    return fd


def remove_tree(place: int, name: str) -> None:
    """Whatever ``name`` is, with all in it; symbolic links are removed, not followed."""
    for _, directories, others, at in os.fwalk(name, topdown=False, dir_fd=place):
        for other in others:
            os.unlink(other, dir_fd=at)
        for directory in directories:
            if stat.S_ISLNK(os.lstat(directory, dir_fd=at).st_mode):
                os.unlink(directory, dir_fd=at)
            else:
                os.rmdir(directory, dir_fd=at)
    os.rmdir(name, dir_fd=place)
