"""Trees of files as tar, for ``agentd cp``. What comes out of a sandbox is hostile."""

import io
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator

from agentd.model.errors import OperationFailed, SandboxError

_PIECE = 256 << 10
MAX_MEMBERS = 1_000_000


class Counter:
    bytes = 0


def pack(folder: str, name: str, counter: Counter) -> Iterator[bytes]:
    """A tar of ``folder`` under ``name``, in pieces, as it is read."""
    sink = _Sink()
    with tarfile.open(fileobj=sink, mode="w|", bufsize=_PIECE, format=tarfile.PAX_FORMAT) as tar:
        for path, inside in _walk(folder, name):
            info: tarfile.TarInfo | None = tar.gettarinfo(path, inside)
            if info is None:  # a socket: it is nothing without whoever listens
                continue
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            if not info.isreg():
                tar.addfile(info)
            else:
                with open(path, "rb") as file:
                    tar.addfile(info, file)
                counter.bytes += info.size
            yield from sink.take()
    yield from sink.take()


def unpack(pieces: Iterable[bytes], target: str) -> int:
    """A tar's one tree as ``target``; bytes of its files. Raises SandboxError for what would
    leave it: links that point out, device nodes, names with dots in them."""
    total = 0
    parent = os.path.dirname(os.path.abspath(target))
    with tempfile.TemporaryDirectory(prefix=".agentd-cp-", dir=parent) as place:
        source = _Source(pieces)
        with tarfile.open(fileobj=source, mode="r|", bufsize=_PIECE) as tar:
            for number, member in enumerate(tar):
                if number >= MAX_MEMBERS:
                    raise SandboxError(f"over {MAX_MEMBERS} files in it")
                try:
                    tar.extract(member, place, filter="data")
                except tarfile.FilterError as error:
                    raise SandboxError(
                        f"the sandbox's tree has a member that may not come out: {error}",
                        remediation="remove it there, or copy the rest by itself",
                    ) from None
                total += member.size if member.isreg() else 0
        source.drain()
        _place(place, target)
    return total


def save(pieces: Iterable[bytes], target: str, mode: int) -> int:
    """One file, whole or not at all; its size."""
    parent = os.path.dirname(os.path.abspath(target))
    total = 0
    fd, name = tempfile.mkstemp(prefix=".agentd-cp-", dir=parent)
    try:
        with os.fdopen(fd, "wb") as file:
            for piece in pieces:
                total += file.write(piece)
            os.fchmod(file.fileno(), mode)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    return total


def _walk(folder: str, name: str) -> Iterator[tuple[str, str]]:
    yield folder, name
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        inside = f"{name}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, inside)
        else:
            yield entry.path, inside


def _place(folder: str, target: str) -> None:
    names = os.listdir(folder)
    if len(names) != 1:
        raise OperationFailed(f"the sandbox sent {len(names)} trees where one was asked for")
    found = os.path.join(folder, names[0])
    if not os.path.isdir(target) or os.path.islink(target):
        if os.path.lexists(target):
            os.unlink(target)
        os.rename(found, target)
        return
    import shutil

    shutil.copytree(found, target, symlinks=True, dirs_exist_ok=True)


class _Sink(io.RawIOBase):
    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes") -> int:  # type: ignore[override]
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> Iterator[bytes]:
        parts, self._parts = self._parts, []
        yield from parts


class _Source(io.RawIOBase):
    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        while not self._left:
            try:
                self._left = next(self._pieces)
            except StopIteration:
                return b""
        if size < 0:
            size = len(self._left)
        data, self._left = self._left[:size], self._left[size:]
        return data

    def drain(self) -> None:
        """To the end, so that a tar that was cut off is told by its connection."""
        while self.read(_PIECE):
            pass
