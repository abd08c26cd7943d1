"""Files inside a sandbox, over its agent."""

import contextlib
import errno
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, Literal, TypeVar

import msgspec

from agentd.guest import wire
from agentd.model import context, typed
from agentd.model.begun import begun
from agentd.model.errors import GuestError, InvalidInput, OperationFailed
from agentd.transport.call import AgentCall, WaitEnded
from agentd.transport.events import Count, Error, decode, failure
from agentd.transport.text import safe_text

MAX_READ = 256 << 20
MAX_MODE, MAX_FOLDER_MODE = 0o7777, 0o1777  # the agent makes no folder with set-id bits
MAX_ENTRIES = 250_000
# Bytes of one listing as they come, which are several times as many once they are taken apart.
MAX_LISTING = 32 << 20
_SHORT = 1 << 20
_COPIES = 4  # as they come, taken apart, told and written
MAX_PATH = 4095
_ROOT = ("/", "//")  # as normpath leaves it
_PIECE = 1 << 20
T = TypeVar("T")


class Entry(msgspec.Struct, frozen=True):
    """Describes a path: ``mtime`` in seconds of Unix time, ``target`` of a link, ``size`` in bytes;
    ``name`` holds no slash."""

    name: str
    path: str
    type: Literal["file", "dir", "link", "fifo", "socket", "char", "block"]
    size: Count
    mode: Count
    uid: Count
    gid: Count
    mtime: float
    target: str | None = None

    def __post_init__(self) -> None:
        # A caller may join the name to a path of the host's.
        if not self.name or "/" in self.name or "\0" in self.name or self.name in {".", ".."}:
            if self.name == "/" and os.path.normpath(self.path) in _ROOT:
                return  # of a stat of it, however it was named
            raise ValueError("an entry's name is not the name of a file")


class Change(msgspec.Struct, frozen=True, tag="change", tag_field="event"):
    kind: Literal["create", "modify", "delete", "move", "overflow"]
    path: str


class _Done(msgspec.Struct, tag="result", tag_field="event"):
    size: Count = 0
    count: Count = 0
    entry: Entry | None = None


class _Entries(msgspec.Struct, tag="entries", tag_field="event"):
    entries: list[Entry]


class _Watching(msgspec.Struct, tag="watching", tag_field="event"):
    pass


class _End(msgspec.Struct, tag="end", tag_field="event"):
    pass


_DONE: "msgspec.json.Decoder[_Done]" = typed.decoder(_Done | Error)
_LIST: "msgspec.json.Decoder[_Entries | _Done]" = typed.decoder(_Entries | _Done | Error)
_WATCH: "msgspec.json.Decoder[Change | _Watching | _End]" = typed.decoder(
    Change | _Watching | _End | Error
)
Data = bytes | Iterable[bytes] | BinaryIO


class GuestFiles:
    """Reads and changes files by their paths inside. Raises OperationFailed with the errno where
    the agent refuses, GuestError where it answers out of place."""

    def __init__(self, call: Callable[[dict[str, Any]], AbstractContextManager[AgentCall]]) -> None:
        self._call = call

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Read at most 256 MiB at once: ``read_iter`` has no bound."""
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
        """Yield the bytes as they come; a readable descriptor ``wake`` ends them early."""
        fields = {"op": "fs.read", "path": checked(path), "offset": offset}
        if length is not None:
            fields["length"] = length
        left = length
        with self._call(fields) as call, contextlib.suppress(WaitEnded):
            call.wake = wake
            at_end = False
            while True:
                kind, payload = call.next()
                if kind == wire.EVENT:
                    self._result(_DONE, payload, path)
                    call.ended = True
                    return
                at_end = self._check_read(kind, at_end)
                if left is not None:
                    left -= len(payload)
                    if left < 0:
                        raise GuestError("the agent sent more of a file than was asked for")
                if payload:
                    yield payload
                    call.consumed(len(payload))

    @staticmethod
    def _check_read(kind: int, at_end: bool) -> bool:
        if at_end or kind not in {wire.DATA, wire.DATA_EOF}:
            raise GuestError(f"the agent sent a frame of type {kind} out of place")
        return kind == wire.DATA_EOF

    def write(self, path: str, data: Data, mode: int = 0o644, parents: bool = False) -> int:
        """Write the whole file or none of it; return its size in bytes."""
        _check_mode(mode, MAX_MODE)
        fields = {"op": "fs.write", "path": checked(path), "mode": mode, "parents": parents}
        with self._call(fields) as call:
            if all(call.send_data(memoryview(piece)) for piece in _pieces(data)):
                call.send(wire.encode(wire.DATA_EOF, call.channel.number))
            done = self._result(_DONE, _event(call), path)
            call.ended = True
            return done.size

    def read_tar(self, path: str) -> Iterator[bytes]:
        """Yield the tree at ``path`` as a tar, as it comes; its members begin with the last part of
        it.

        What ends it early is raised.
        """
        with self._call({"op": "fs.tar_read", "path": checked(path)}) as call:
            at_end = False
            while True:
                kind, payload = call.next()
                if kind == wire.EVENT:
                    self._tar_result(payload, path)
                    call.ended = True
                    return
                at_end = self._check_read(kind, at_end)
                if payload:
                    yield payload
                    call.consumed(len(payload))

    def write_tar(
        self, path: str, data: Iterable[bytes], *, whole: bool = False, replace: bool = False
    ) -> int:
        """Unpack a tar into the folder ``path``; return the bytes of its files.

        ``whole``: the tar is one tree, which becomes ``path`` itself, as a whole or not at all;
        with ``replace`` in the place of what is there. Raises InvalidInput for ``replace`` alone.
        """
        if replace and not whole:
            raise InvalidInput("only a whole tree replaces what is there", remediation="add whole")
        flags = {"whole": whole, "replace": replace}
        fields = {"op": "fs.tar_write", "path": checked(path), **flags}
        with self._call(fields) as call:
            if all(call.send_data(memoryview(piece)) for piece in data):
                call.send(wire.encode(wire.DATA_EOF, call.channel.number))
            done = self._tar_result(_event(call), path)
            call.ended = True
            return done.size

    def _tar_result(self, payload: bytes, path: str) -> _Done:
        event = decode(_DONE, payload)
        if isinstance(event, Error) and event.message.startswith("unknown operation"):
            raise OperationFailed(
                f"{path}: the agent in this sandbox is older, and copies no folders",
                remediation="create a new sandbox, after agentd image build where it is a machine;"
                " files can be copied one by one, or with a tar command inside",
            )
        if isinstance(event, Error):
            # In the agent's words: its path is of an entry, and its reason may be no kernel's.
            text = safe_text(event.message, 500)
            raise OperationFailed(f"{path}: {text}", errno=event.errno)
        return event

    def stat(self, path: str) -> Entry:
        """Tell what a path is; of a link, the link itself."""
        done = self._simple("fs.stat", path)
        if done.entry is None:
            raise GuestError("the agent sent a stat without an entry")
        return done.entry

    def list(self, path: str) -> "list[Entry]":
        """List at most 250 000 entries, and 32 MiB of names, paths and links' targets. One that is
        long waits until there is room for it in memory. Raises what ``context.make_room`` does."""
        entries: list[Entry] = []
        size, room = 0, _SHORT
        with self._call({"op": "fs.list", "path": checked(path)}) as call:
            while True:
                payload = _event(call)
                size += len(payload)
                if size > MAX_LISTING:
                    raise _too_long(path)
                if size > room:
                    room = MAX_LISTING
                    context.make_room(_COPIES * room)
                event = decode(_LIST, payload)
                if isinstance(event, Error):
                    raise _too_long(path) if event.errno == errno.EFBIG else failure(event, path)
                if isinstance(event, _Done):
                    call.ended = True
                    return entries
                if any(entry.name == "/" for entry in event.entries):
                    raise GuestError("the agent sent a listing with the root in it")
                entries += event.entries
                if len(entries) > MAX_ENTRIES:
                    raise _too_long(path)

    def mkdir(self, path: str, mode: int = 0o755, parents: bool = False) -> None:
        _check_mode(mode, MAX_FOLDER_MODE)
        self._simple("fs.mkdir", path, mode=mode, parents=parents)

    def move(self, path: str, to: str) -> None:
        try:
            self._simple("fs.move", path, named=f"{path} -> {to}", to=checked(to))
        except OperationFailed as error:
            if error.errno == errno.EXDEV:
                error.remediation = "write it there, and remove it here; or run mv, which copies"
            raise

    def remove(self, path: str, recursive: bool = False) -> None:
        self._simple("fs.remove", path, recursive=recursive)

    def watch(self, path: str, recursive: bool = False, *, wake: int = -1) -> Iterator[Change]:
        """Watch from now on; return changes until they are closed, or ``wake`` becomes readable."""
        return begun(self._watched(path, recursive, wake))

    def _watched(
        self, path: str, recursive: bool, wake: int
    ) -> Generator[Change | None, None, None]:
        """Yield None once it has begun, then the changes."""
        fields = {"op": "fs.watch", "path": checked(path), "recursive": recursive}
        with self._call(fields) as call, contextlib.suppress(WaitEnded):
            call.wake = wake
            began = not call.offered("watching")
            if began:  # an older agent does not tell
                yield None
            while True:
                kind, payload = call.next(forever=True)
                if kind != wire.EVENT:
                    raise GuestError(f"the agent sent a frame of type {kind} out of place")
                event = self._result(_WATCH, payload, path)
                if not began:
                    began = True
                    yield None
                elif isinstance(event, _Watching):
                    raise GuestError("the agent began to watch twice")
                if isinstance(event, Change):
                    yield event
                elif isinstance(event, _End):
                    call.ended = True
                    return

    def _simple(self, op: str, path: str, *, named: str = "", **fields: object) -> _Done:
        with self._call({"op": op, "path": checked(path), **fields}) as call:
            done = self._result(_DONE, _event(call), named or path)
            call.ended = True
            return done

    @staticmethod
    def _result(decoder: "msgspec.json.Decoder[T]", payload: bytes, path: str) -> T:
        event = decode(decoder, payload)
        if isinstance(event, Error):
            raise failure(event, path)
        return event


def checked(path: str) -> str:
    """Raises InvalidInput for what is no path inside: the caller's slip, not the sandbox's."""
    if not path.startswith("/") or "\0" in path:
        what = "holds a NUL" if "\0" in path else "is not absolute"
        raise InvalidInput(
            f"the path {safe_text(path)!r} {what}", remediation="write it as /workspace/file"
        )
    try:
        length = len(path.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise InvalidInput(
            f"the path {safe_text(path)!r} holds a character that no file name has",
            remediation="send UTF-8",
        ) from None
    if length > MAX_PATH:
        raise InvalidInput(f"the path is over {MAX_PATH} bytes", remediation="shorten it")
    return path


def _check_mode(mode: int, most: int) -> None:
    """Raises InvalidInput."""
    if not 0 <= mode <= most:
        raise InvalidInput(
            f"mode {mode} is out of range", remediation=f"give 0 to {most} ({most:#o})"
        )


def _too_long(path: str) -> OperationFailed:
    return OperationFailed(
        f"{path}: its listing is over {MAX_ENTRIES} entries or {MAX_LISTING >> 20} MiB",
        errno=errno.EFBIG,
        remediation="list a folder in it, or run a command, such as find",
    )


def _event(call: AgentCall) -> bytes:
    kind, payload = call.next()
    if kind != wire.EVENT:
        raise GuestError(f"the agent sent a frame of type {kind} out of place")
    return payload


def _pieces(data: Data) -> Iterator[bytes]:
    if isinstance(data, (bytes, bytearray, memoryview)):
        yield bytes(data)
    elif hasattr(data, "read"):
        while piece := data.read(_PIECE):
            yield piece
    else:
        yield from data
