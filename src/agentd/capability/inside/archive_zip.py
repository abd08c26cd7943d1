"""Part of archive_read: zip. Of ``zipfile`` the directory, stored and deflated members are used,
which it reads in bounded pieces; bzip2 and LZMA members it would not."""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from agentd.capability.inside.archive_streams import CHUNK, Member, is_bomb
from agentd.capability.inside.common import Failed

MAX_DIRECTORY = 8 << 20  # bytes; zipfile takes all of it, as the zip states its size, into memory
_ENCRYPTED = 0x41  # bits of the flags
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_KINDS = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError)


class Bounded(io.BufferedReader):
    def read(self, size: int | None = -1, /) -> bytes:
        whole = size is None or size < 0
        data = super().read(MAX_DIRECTORY + 1 if whole else min(size or 0, MAX_DIRECTORY + 1))
        if len(data) > MAX_DIRECTORY:
            raise Failed("bomb", f"the zip's directory is over {MAX_DIRECTORY} bytes")
        return data


def zip_members(file: Bounded, max_ratio: int) -> Iterator[Member]:
    size = file.seek(0, io.SEEK_END)
    try:
        archive = zipfile.ZipFile(file)
    except _DAMAGED as error:
        raise Failed("corrupt", f"the zip is damaged: {error}") from None
    with archive:
        infos = archive.infolist()
        if any(info.header_offset > size for info in infos):
            raise Failed("corrupt", "the zip is damaged: a member begins behind its end")
        _check_overlap(infos)
        for info in infos:
            body = _Body(archive, info)
            try:
                yield _member(info, body, max_ratio)
            finally:
                body.close()


def _check_overlap(infos: list[zipfile.ZipInfo]) -> None:
    """Members that share their data make a lot of little, ratio or not."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise Failed("bomb", "members of the zip overlap")
        end = info.header_offset + 30 + info.compress_size  # 30: the least header


def _member(info: zipfile.ZipInfo, body: _Body, max_ratio: int) -> Member:
    mode = info.external_attr >> 16
    # zipfile cuts a name at its NUL.
    name = info.orig_filename if "\0" in info.orig_filename else info.filename
    kind = _KINDS.get(stat.S_IFMT(mode), "other")
    if kind == "file" and name.endswith("/"):
        kind = "dir"
    return Member(name, kind, info.file_size, mode, _problem(info, kind, max_ratio), body.read)


def _problem(info: zipfile.ZipInfo, kind: str, max_ratio: int) -> str:
    if kind in ("link", "other"):
        return "link" if kind == "link" else "device"
    if (info.external_attr >> 16) & (stat.S_ISUID | stat.S_ISGID):
        return "setuid"
    if info.flag_bits & _ENCRYPTED:
        return "encrypted"
    if info.compress_type not in _METHODS:
        return "unsupported"
    return "bomb" if is_bomb(info.file_size, info.compress_size, max_ratio) else ""


class _Body:
    """A member's data, opened when it is first read."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self._archive, self._info = archive, info
        self._stream: Any = None

    def read(self, size: int) -> bytes:
        try:
            if self._stream is None:
                self._stream = self._archive.open(self._info)
            data: bytes = self._stream.read(min(size, CHUNK))
        except (*_DAMAGED, RuntimeError) as error:
            raise Failed("corrupt", f"a member of the zip is damaged: {error}") from None
        return data

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
