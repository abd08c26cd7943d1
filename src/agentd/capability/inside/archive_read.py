"""Runs in the sandbox: lists, reads and extracts zip and tar archives and compressed files.

In: {op, path, root, member, members, to, temporary, max_bytes, max_members, max_ratio}; paths are
absolute. Out: what ``builtin/archive_read.py`` decodes.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator
from typing import Any

from agentd.capability.inside.archive_streams import (
    CHUNK,
    Counted,
    Inflated,
    Joined,
    Member,
    clean,
    exactly,
)
from agentd.capability.inside.archive_tar import BLOCK, is_tar, tar_members
from agentd.capability.inside.archive_zip import Bounded, zip_members
from agentd.capability.inside.common import Failed, answer, open_file, open_parent, remove_tree

MAX_LISTING = 4 << 20  # bytes of names, about
_INNER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAGIC = {"gz": b"\x1f\x8b\x08", "bz2": b"BZh", "xz": b"\xfd7zXZ\0"}
_PROBLEMS = {
    "absolute_path": "its name is absolute",
    "bad_name": "its name has a backslash, a control character, bytes that are not UTF-8, or is"
    " too long",
    "bomb": "more would come out of it than max_ratio times what is stored",
    "device": "it is a device, a pipe or a socket",
    "encrypted": "it is encrypted",
    "link": "it is a link",
    "setuid": "it has a set-user-ID or set-group-ID bit",
    "traversal": "its name has '..'",
    "unsupported": "it is stored in a way that is not supported",
}


def work(ask: dict[str, Any]) -> dict[str, Any]:
    with Bounded(io.FileIO(open_file(ask["root"], ask["path"]))) as file:
        form, members = _recognised(file, ask)
        counted = _bounded(members, ask["max_members"], ask["op"] == "list")
        done = {"list": _list, "read": _read, "extract": _extract}[ask["op"]](counted, ask)
    return {"format": form, **done}


def _recognised(file: Bounded, ask: dict[str, Any]) -> tuple[str, Iterator[Member]]:
    """Recognise a format by its first bytes, whatever the name is."""
    head = file.read(BLOCK)
    file.seek(0)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip", zip_members(file, ask["max_ratio"])
    if is_tar(head):
        return "tar", tar_members(file)
    for kind, magic in _MAGIC.items():
        if head.startswith(magic):
            return _inflated(Inflated(Counted(file), kind, ask["max_ratio"]), kind, ask["path"])
    raise Failed("not_an_archive", f"{ask['path']} is no zip, tar, gzip, bzip2 or xz file")


def _inflated(stream: Inflated, kind: str, path: str) -> tuple[str, Iterator[Member]]:
    head = exactly(stream, BLOCK)
    joined = Joined(head, stream)
    if is_tar(head):
        return f"tar.{kind}", _to_the_end(tar_members(joined), joined)
    name = os.path.basename(path)
    name = name[: -len(kind) - 1] if name.endswith(f".{kind}") else name
    return kind, iter([Member(name or "data", "file", None, 0o644, "", joined.read)])


def _to_the_end(members: Iterator[Member], source: Joined) -> Iterator[Member]:
    """A compressed stream has its checksum behind the tar in it."""
    yield from members
    while source.read(CHUNK):
        pass


def _bounded(members: Iterable[Member], most: int, stops: bool) -> Iterator[Member | None]:
    """Read it; None for more than ``most``, where that does not fail."""
    for count, member in enumerate(members):
        if count >= most:
            if not stops:
                raise Failed("too_many_members", f"it has over {most} members", "raise max_members")
            yield None
            return
        yield member


def _list(members: Iterator[Member | None], ask: dict[str, Any]) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    size = 0
    for member in members:
        size += len(member.name) * 4 + 100 if member else 0
        if member is None or size > MAX_LISTING:
            return {"members": found, "truncated": True}
        found.append(
            {
                "name": member.name,
                "type": member.kind,
                "size": member.size,
                "mode": member.mode & 0o7777,
                "problem": member.problem,
            }
        )
    return {"members": found, "truncated": False}


def _read(members: Iterator[Member | None], ask: dict[str, Any]) -> dict[str, Any]:
    wanted = _asked(ask["member"])
    found: dict[str, Any] = {}
    for member in members:
        if member is None or member.name != wanted:
            continue
        _check(member)
        if found:
            raise _duplicate(wanted)
        if member.kind != "file":
            raise Failed("not_a_file", f"{wanted} is a directory of the archive")
        data = exactly(member, ask["max_bytes"])
        rest = len(data) == ask["max_bytes"] and bool(member.read(1))
        found = {
            "member": wanted,
            "base64": base64.b64encode(data).decode(),
            "size": member.size if rest else len(data),
            "truncated": rest,
        }
    if not found:
        raise Failed("member_not_found", f"there is no {wanted} in it", "list it to see what is")
    return found


def _asked(name: str) -> str:
    wanted, problem = clean(name)
    if problem or not wanted:
        raise Failed("bad_member", f"{wanted or name!r} names nothing that can be had")
    return wanted


def _check(member: Member) -> None:
    if member.problem:
        raise Failed(
            member.problem, f"{member.name}: {_PROBLEMS[member.problem]}", "name others by members"
        )


def _duplicate(name: str) -> Failed:
    return Failed("duplicate", f"{name} is in it more than once, and which one counts is not clear")


def _extract(members: Iterator[Member | None], ask: dict[str, Any]) -> dict[str, Any]:
    """Extract all of it or nothing: into a directory that takes the right name at the end."""
    wanted = {_asked(name) for name in ask["members"]}
    place, name = open_parent(ask["root"], ask["to"])
    try:
        _check_free(place, name, ask["to"])
        os.mkdir(ask["temporary"], 0o700, dir_fd=place)
        try:
            writer = _Writer(os.open(ask["temporary"], _INNER, dir_fd=place), ask)
            try:
                for member in members:
                    if member is not None:
                        writer.take(member, wanted)
                os.fchmod(writer.top, 0o755)
            finally:
                os.close(writer.top)
            _check_found(wanted, writer.names)
            os.rename(ask["temporary"], name, src_dir_fd=place, dst_dir_fd=place)
        except BaseException:
            remove_tree(place, ask["temporary"])
            raise
    finally:
        os.close(place)
    return {
        "path": ask["to"],
        "files": writer.files,
        "directories": writer.directories,
        "bytes": writer.bytes,
    }


def _check_free(place: int, name: str, path: str) -> None:
    try:
        os.lstat(name, dir_fd=place)
    except FileNotFoundError:
        return
    raise Failed("exists", f"{path} is there already", "name a directory that is not")


def _check_found(wanted: set[str], names: set[str]) -> None:
    had = names.union(*(_parents(name) for name in names)) if names else names
    if missing := sorted(wanted - had):
        raise Failed(
            "member_not_found", f"there is no {missing[0]} in it", "list it to see what is"
        )


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


class _Writer:
    """Writes below ``top`` only: every step is one name, opened from a descriptor, no links."""

    def __init__(self, top: int, ask: dict[str, Any]) -> None:
        self.top = top
        self.files = self.directories = self.bytes = 0
        self.names: set[str] = set()
        self._most, self._max_bytes = ask["max_members"], ask["max_bytes"]

    def take(self, member: Member, wanted: set[str]) -> None:
        if wanted and not wanted & {member.name, *_parents(member.name)}:
            return
        _check(member)
        if not member.name:
            return  # the root itself, "./"
        if member.name in self.names and member.kind == "file":
            raise _duplicate(member.name)
        self.names.add(member.name)
        parent, name = self._directory(member)
        try:
            if member.kind == "file":
                self._file(parent, name, member)
        finally:
            os.close(parent)

    def _directory(self, member: Member) -> tuple[int, str]:
        parts = member.name.split("/")
        last = parts.pop() if member.kind == "file" else ""
        place = os.dup(self.top)
        for part in parts:
            inner = self._inner(place, part, member.name)
            os.close(place)
            place = inner
        return place, last

    def _inner(self, place: int, part: str, name: str) -> int:
        try:
            os.mkdir(part, 0o755, dir_fd=place)
            self.directories += 1
            if self.files + self.directories > self._most:
                raise Failed(
                    "too_many_members",
                    f"over {self._most} files and directories",
                    "raise max_members",
                )
        except FileExistsError:
            pass
        try:
            return os.open(part, _INNER, dir_fd=place)
        except OSError:
            raise Failed("duplicate", f"{name}: a part of it is a file, too") from None

    def _file(self, parent: int, name: str, member: Member) -> None:
        try:
            fd = os.open(name, _NEW, 0o600, dir_fd=parent)
        except FileExistsError:
            raise _duplicate(member.name) from None
        with io.FileIO(fd, "w") as file:
            while data := member.read(CHUNK):
                self.bytes += len(data)
                if self.bytes > self._max_bytes:
                    raise Failed("too_large", f"over {self._max_bytes} bytes", "raise max_bytes")
                _write(file, data)
            os.fchmod(fd, 0o755 if member.mode & 0o100 else 0o644)
        self.files += 1


def _write(file: io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


if __name__ == "__main__":
    answer(work)
