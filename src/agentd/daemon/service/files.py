"""Files of a caller's sandboxes, and trees of them as tar, through their agents.

Each is judged and recorded as the capability that does the same: ``fs.read.v1``, ``fs.list.v1``,
``fs.write.v1``. What writes has one START, one END and a receipt; what reads has no receipt, and
nobody waits for its records; a look (``list``, ``stat``) is over once it is decided.
"""

import select
from collections.abc import Generator, Iterable, Iterator
from hashlib import sha256

import msgspec

from agentd.daemon.admission import acts
from agentd.daemon.admission.admission import Admission
from agentd.daemon.observe.observed import observed
from agentd.daemon.sandboxes.live import Live
from agentd.daemon.service.noun import Noun
from agentd.model.api import ChangeView, EntryView
from agentd.model.begun import begun
from agentd.model.content import Content
from agentd.model.typed import like
from agentd.policy.scopes import scope_of
from agentd.transport.connection import ready
from agentd.transport.files import checked


class DaemonFiles(Noun):
    """Implements ``model.service.Files``."""

    @observed("read_file")
    def read(self, sandbox: str, path: str, offset: int = 0, length: int | None = None) -> Content:
        live, admission = self._open(sandbox, acts.READ, "read a file", path=path)
        files = live.handle.guest.files
        entry = files.stat(path)
        size = entry.size if entry.type == "file" else 0
        if not size:  # it may have content all the same: /proc is full of that
            offset, length = 0, None
        first = offset if offset >= 0 else max(0, size + offset)
        pieces = admission.over(files.read_iter(path, first, length))
        told = self._observer.pieces("read_file_data", self._who.name, live.id, pieces)
        return Content(told, first, size or None)

    @observed("write_file")
    def write(
        self,
        sandbox: str,
        path: str,
        data: Iterable[bytes],
        *,
        mode: int = 0o644,
        parents: bool = False,
    ) -> int:
        live, admission = self._open(sandbox, acts.WRITE, "write a file", path=path)
        content = _Hashed(data)
        with admission:
            admission.begin()
            size = live.handle.guest.files.write(path, content, mode=mode, parents=parents)
            admission.done(input_digest=content.digest)
        return size

    @observed("list_files")
    def list(self, sandbox: str, path: str) -> tuple[EntryView, ...]:
        live, _ = self._open(sandbox, acts.LIST, "list files", path=path)
        return tuple(like(EntryView, entry) for entry in live.handle.guest.files.list(path))

    @observed("stat_file")
    def stat(self, sandbox: str, path: str) -> EntryView:
        live, _ = self._open(sandbox, acts.LIST, "look at a file", path=path)
        return like(EntryView, live.handle.guest.files.stat(path))

    @observed("mkdir")
    def mkdir(self, sandbox: str, path: str, *, mode: int = 0o755, parents: bool = False) -> None:
        live, admission = self._open(
            sandbox, acts.WRITE, "make a directory", "mkdir", path=checked(path)
        )
        with admission:
            admission.begin()
            live.handle.guest.files.mkdir(path, mode=mode, parents=parents)

    @observed("move")
    def move(self, sandbox: str, path: str, to: str) -> None:
        live = self._live(scope_of(acts.WRITE), sandbox)
        live.require_running("move a file")
        taken, given = (self._act(live, acts.WRITE, path=checked(at)) for at in (path, to))
        taken = msgspec.structs.replace(taken, how={"operation": "move", "to": to})
        with self._parts.control.gate.operation(taken, live.handle, (given,)) as admission:
            admission.begin()
            live.handle.guest.files.move(path, to)

    @observed("remove")
    def remove(self, sandbox: str, path: str, *, recursive: bool = False) -> None:
        live, admission = self._open(sandbox, acts.WRITE, "remove a file", "remove", path=path)
        with admission:
            admission.begin()
            live.handle.guest.files.remove(path, recursive=recursive)

    @observed("watch")
    def watch(
        self, sandbox: str, path: str, *, recursive: bool = False, wake: int = -1
    ) -> Iterator[ChangeView]:
        live, admission = self._open(sandbox, acts.LIST, "watch files", path=path)
        return begun(admission.over(_changes(live, admission, path, recursive, wake)))

    @observed("read_tar")
    def read_tar(self, sandbox: str, path: str) -> Iterator[bytes]:
        live, admission = self._open(sandbox, acts.READ, "read a tree", path=path)
        pieces = admission.over(live.handle.guest.files.read_tar(path))
        return self._observer.pieces("read_tar_data", self._who.name, live.id, pieces)

    @observed("write_tar")
    def write_tar(
        self,
        sandbox: str,
        path: str,
        data: Iterable[bytes],
        *,
        whole: bool = False,
        replace: bool = False,
    ) -> None:
        live, admission = self._open(sandbox, acts.WRITE, "write a tree", "tar", path=path)
        content = _Hashed(data)
        with admission:
            admission.begin()
            live.handle.guest.files.write_tar(path, content, whole=whole, replace=replace)
            admission.done(input_digest=content.digest)


class _Hashed:
    """An upload, and its digest once all of it was taken."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self._sha256 = sha256()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self._sha256.update(piece)
            yield piece

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"


def _changes(
    live: Live, admission: Admission, path: str, recursive: bool, wake: int
) -> Generator[ChangeView | None, None, None]:
    changes = live.handle.guest.files.watch(path, recursive, wake=wake)
    yield None
    for change in changes:
        yield ChangeView(kind=change.kind, path=change.path)
    if wake >= 0 and ready(wake, select.POLLIN, 0.0):  # else it ended with its folder
        admission.fail(None)
