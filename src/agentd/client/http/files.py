"""Files inside a daemon's sandbox, with the methods that ``transport.files.Files`` has."""

import http.client
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from agentd.client.http.client import HttpClient, segment
from agentd.client.http.connection import Woken
from agentd.client.http.sse import events
from agentd.model import typed
from agentd.model.api import ChangeView, EntryView, MkdirBody, MoveBody
from agentd.model.errors import OperationFailed

if TYPE_CHECKING:
    from agentd.transport.files import Change, Entry

MAX_READ = 256 << 20
_PIECE = 256 << 10
_BEYOND_THE_END = 416
Data = bytes | Iterable[bytes] | BinaryIO


class _Size(msgspec.Struct):
    size: int


class HttpFiles:
    """Implements ``model.service.Files``."""

    def __init__(self, requests: HttpClient) -> None:
        self._requests = requests

    def read(
        self, sandbox: str, path: str, offset: int = 0, length: int | None = None
    ) -> Iterator[bytes]:
        return self._of(sandbox).read_iter(path, offset, length)

    def write(
        self,
        sandbox: str,
        path: str,
        data: Iterable[bytes],
        *,
        mode: int = 0o644,
        parents: bool = False,
    ) -> int:
        return self._of(sandbox).write(path, data, mode, parents)

    def list(self, sandbox: str, path: str) -> tuple[EntryView, ...]:
        return self._of(sandbox).entries(path)

    def stat(self, sandbox: str, path: str) -> EntryView:
        return self._of(sandbox).entry(path)

    def mkdir(self, sandbox: str, path: str, *, mode: int = 0o755, parents: bool = False) -> None:
        self._of(sandbox).mkdir(path, mode, parents)

    def move(self, sandbox: str, path: str, to: str) -> None:
        self._of(sandbox).move(path, to)

    def remove(self, sandbox: str, path: str, *, recursive: bool = False) -> None:
        self._of(sandbox).remove(path, recursive)

    def watch(
        self, sandbox: str, path: str, *, recursive: bool = False, wake: int = -1
    ) -> Iterator[ChangeView]:
        return self._of(sandbox).changes(path, recursive, wake)

    def read_tar(self, sandbox: str, path: str) -> Iterator[bytes]:
        return self._of(sandbox).read_tar(path)

    def write_tar(
        self,
        sandbox: str,
        path: str,
        data: Iterable[bytes],
        *,
        whole: bool = False,
        replace: bool = False,
    ) -> None:
        self._of(sandbox).write_tar(path, data, whole=whole, replace=replace)

    def _of(self, sandbox: str) -> "RemoteFiles":
        return RemoteFiles(self._requests, f"/v1/sandboxes/{segment(sandbox)}")


class RemoteFiles:
    def __init__(self, client: HttpClient, sandbox: str) -> None:
        """``sandbox`` is its path."""
        self._client = client
        self._path = f"{sandbox}/files"

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        parts = bytearray()
        for piece in self.read_iter(path, offset, length):
            parts += piece
            if len(parts) > MAX_READ:
                raise OperationFailed(
                    f"{path}: over {MAX_READ} bytes to read at once",
                    remediation="read it in parts, by offset and length",
                )
        return bytes(parts)

    def read_iter(
        self, path: str, offset: int = 0, length: int | None = None, *, wake: int = -1
    ) -> Iterator[bytes]:
        if length == 0:
            self.stat(path)  # it must be there, as for any other part
            return
        headers = {}
        if offset or length is not None:
            headers["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        answer = self._client.open(
            "GET", self._path, query={"path": path}, headers=headers, wake=wake
        )
        with suppress(Woken), _Beyond(), answer as response:
            # What has no size, as the files of /proc, comes whole whatever was asked for.
            whole = bool(headers) and response.status != http.client.PARTIAL_CONTENT
            pieces = _read(response)
            yield from _part(pieces, offset, length) if whole else pieces

    def write(self, path: str, data: Data, mode: int = 0o644, parents: bool = False) -> int:
        query = {"path": path, "mode": f"{mode:o}", "parents": parents}
        body = data if isinstance(data, bytes) else _pieces(data)
        return int(self._client.upload(self._path, body, query, into=_Size).size)

    def stat(self, path: str) -> "Entry":
        return _entry(self.entry(path), path)

    def list(self, path: str) -> "list[Entry]":
        return [_entry(view, os.path.join(path, view.name)) for view in self.entries(path)]

    def entry(self, path: str) -> EntryView:
        query = {"path": path}
        view: EntryView = self._client.call(
            "GET", f"{self._path}/stat", query=query, into=EntryView
        )
        return view

    def entries(self, path: str) -> tuple[EntryView, ...]:
        views: tuple[EntryView, ...] = self._client.call(
            "GET", f"{self._path}/list", query={"path": path}, into=tuple[EntryView, ...]
        )
        return views

    def mkdir(self, path: str, mode: int = 0o755, parents: bool = False) -> None:
        self._post("mkdir", MkdirBody(path=path, mode=mode, parents=parents))

    def move(self, path: str, to: str) -> None:
        self._post("move", MoveBody(path=path, to=to))

    def remove(self, path: str, recursive: bool = False) -> None:
        self._client.call("DELETE", self._path, query={"path": path, "recursive": recursive})

    def watch(self, path: str, recursive: bool = False, *, wake: int = -1) -> "Iterator[Change]":
        from agentd.transport.files import Change

        for found in self.changes(path, recursive, wake):
            yield Change(kind=found.kind, path=found.path)  # type: ignore[arg-type]

    def changes(self, path: str, recursive: bool, wake: int) -> Iterator[ChangeView]:
        query = {"path": path, "recursive": recursive}
        asked = {"Accept": "text/event-stream"}
        answer = self._client.open(
            "GET", f"{self._path}/watch", query=query, headers=asked, wake=wake
        )
        with answer as response:
            for event in events(response):
                if event.name == "change":
                    yield self._client.decode(ChangeView, event.data.encode())

    def read_tar(self, path: str) -> Iterator[bytes]:
        """A tar of it, in pieces; its members begin with the last part of ``path``."""
        with self._client.open("GET", f"{self._path}/tar", query={"path": path}) as response:
            yield from _read(response)

    def write_tar(
        self, path: str, data: Iterable[bytes], *, whole: bool = False, replace: bool = False
    ) -> None:
        """As of ``transport.files.Files``."""
        flags = {"whole": whole, "replace": replace}
        query = {"path": path} | {name: value for name, value in flags.items() if value}
        self._client.upload(f"{self._path}/tar", data, query)

    def _post(self, what: str, body: MkdirBody | MoveBody) -> None:
        self._client.call("POST", f"{self._path}/{what}", body)


def _read(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := response.read1(_PIECE):
        yield piece
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)


def _part(pieces: Iterator[bytes], skip: int, length: int | None) -> Iterator[bytes]:
    left = length
    for piece in pieces:
        kept, skip = piece[skip:], max(0, skip - len(piece))
        kept = kept if left is None else kept[:left]
        left = None if left is None else left - len(kept)
        if kept:
            yield kept


class _Beyond:
    """A part beyond the end of a file is empty."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return getattr(error, "status", 0) == _BEYOND_THE_END


def _entry(view: EntryView, path: str) -> "Entry":
    from agentd.transport.files import Entry

    return typed.convert({**msgspec.structs.asdict(view), "path": path}, Entry)


def _pieces(data: Any) -> Iterator[bytes]:
    if isinstance(data, (bytearray, memoryview)):
        yield bytes(data)
    elif hasattr(data, "read"):
        while piece := data.read(_PIECE):
            yield piece
    else:
        for piece in data:
            if piece:  # an empty chunk would end them all
                yield bytes(piece)
