"""Files inside a daemon's sandboxes."""

import http.client
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any

import msgspec

from agentd.client import arguments
from agentd.client.http.client import segment
from agentd.client.http.connection import Woken
from agentd.client.http.errors import from_event
from agentd.client.http.noun import HttpNoun
from agentd.client.http.sse import events
from agentd.model.api import ChangeView, EntryView, MkdirBody, MoveBody
from agentd.model.begun import begun

_PIECE = 256 << 10
_BEYOND_THE_END = 416


class _Size(msgspec.Struct):
    size: int


class HttpFiles(HttpNoun):
    """Implements ``client.ports.Files``."""

    def read(
        self, sandbox: str, path: str, offset: int = 0, length: int | None = None, *, wake: int = -1
    ) -> Iterator[bytes]:
        if length == 0:
            self.stat(sandbox, path)  # it must be there, as for any other part
            return
        headers = {}
        if offset or length is not None:
            headers["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        answer = self._requests.open(
            "GET", _path(sandbox), query={"path": path}, headers=headers, wake=wake
        )
        with suppress(Woken), _Beyond(), answer as response:
            # What has no size, as the files of /proc, comes whole whatever was asked for.
            whole = bool(headers) and response.status != http.client.PARTIAL_CONTENT
            found = pieces(response)
            yield from _part(found, offset, length) if whole else found

    def write(
        self,
        sandbox: str,
        path: str,
        data: bytes | Iterable[bytes],
        *,
        mode: int = 0o644,
        parents: bool = False,
    ) -> int:
        query = {"path": path, "mode": f"{mode:o}", "parents": parents}
        body = data if isinstance(data, bytes) else _pieces(data)
        return int(self._requests.upload(_path(sandbox), body, query, into=_Size).size)

    def stat(self, sandbox: str, path: str) -> EntryView:
        return self._requests.call(
            "GET", _path(sandbox, "stat"), query={"path": path}, into=EntryView
        )

    def list(self, sandbox: str, path: str) -> tuple[EntryView, ...]:
        return self._requests.call(
            "GET", _path(sandbox, "list"), query={"path": path}, into=tuple[EntryView, ...]
        )

    def mkdir(self, sandbox: str, path: str, *, mode: int = 0o755, parents: bool = False) -> None:
        body = MkdirBody(path=path, mode=mode, parents=parents)
        self._requests.call("POST", _path(sandbox, "mkdir"), body)

    def move(self, sandbox: str, path: str, to: str) -> None:
        self._requests.call("POST", _path(sandbox, "move"), MoveBody(path=path, to=to))

    def remove(self, sandbox: str, path: str, *, recursive: bool = False) -> None:
        query = {"path": path, "recursive": recursive}
        self._requests.call("DELETE", _path(sandbox), query=query)

    def watch(
        self, sandbox: str, path: str, *, recursive: bool = False, wake: int = -1
    ) -> Iterator[ChangeView]:
        return begun(self._changes(sandbox, path, recursive, wake))

    def _changes(
        self, sandbox: str, path: str, recursive: bool, wake: int
    ) -> Generator[ChangeView | None, None, None]:
        query = {"path": path, "recursive": recursive}
        asked = {"Accept": "text/event-stream"}
        answer = self._requests.open(
            "GET", _path(sandbox, "watch"), query=query, headers=asked, wake=wake
        )
        with suppress(Woken), answer as response:
            yield None
            for event in events(response):
                if event.name == "change":
                    yield self._requests.decode(ChangeView, event.data.encode())
                elif event.name == "error":
                    raise from_event(event.data)

    def read_tar(self, sandbox: str, path: str) -> Iterator[bytes]:
        answer = self._requests.open("GET", _path(sandbox, "tar"), query={"path": path})
        with answer as response:
            yield from pieces(response)

    def write_tar(
        self,
        sandbox: str,
        path: str,
        data: Iterable[bytes],
        *,
        whole: bool = False,
        replace: bool = False,
    ) -> None:
        flags = {"whole": whole, "replace": replace}
        query = {"path": path} | {name: value for name, value in flags.items() if value}
        self._requests.upload(_path(sandbox, "tar"), _pieces(data), query)


def _path(sandbox: str, what: str = "") -> str:
    return f"/v1/sandboxes/{segment(sandbox)}/files{what and '/'}{what}"


def pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield what it says, as it comes. Raises IncompleteRead where it breaks off."""
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


def _pieces(data: Any) -> Iterator[bytes]:
    if isinstance(data, (bytearray, memoryview)):
        yield bytes(data)
    else:
        yield from filter(None, arguments.pieces(data))  # an empty chunk would end them all
