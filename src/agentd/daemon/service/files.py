"""Files of a sandbox, and trees of them as tar, through its agent.

Each is judged and recorded as the capability that does the same: ``fs.read.v1``, ``fs.list.v1``,
``fs.write.v1``. What writes has one START, one END and a receipt; what reads has no receipt, and
nobody waits for its records; a look (``list``, ``stat``, ``changes``) is over once it is decided.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

from agentd.daemon.admission import acts
from agentd.daemon.sandboxes.live import Live
from agentd.model.api import EntryView, MkdirBody, MoveBody
from agentd.policy.scopes import scope_of
from agentd.transport.files import Entry

if TYPE_CHECKING:
    from agentd.daemon.admission.admission import Admission
    from agentd.daemon.admission.gate import Gate
    from agentd.daemon.sandboxes.sandboxes import Sandboxes
    from agentd.model.principal import Principal


class Files:
    """The part of the service that is about files. Paths are those inside. Thread-safe."""

    _gate: "Gate"
    _sandboxes: "Sandboxes"

    def read_file(
        self, who: "Principal", id_: str, path: str, offset: int = 0, length: int | None = None
    ) -> Iterator[bytes]:
        live, admission = self._open(who, id_, acts.READ, "read a file", path=path)
        return admission.over(live.handle.guest.files.read_iter(path, offset, length))

    def write_file(
        self,
        who: "Principal",
        id_: str,
        path: str,
        data: Iterable[bytes],
        *,
        mode: int = 0o644,
        parents: bool = False,
    ) -> int:
        live, admission = self._open(who, id_, acts.WRITE, "write a file", path=path)
        content = _Hashed(data)
        with admission:
            admission.begin()
            size = live.handle.guest.files.write(path, content, mode=mode, parents=parents)
            admission.done(input_digest=content.digest)
        return size

    def list_files(self, who: "Principal", id_: str, path: str) -> Sequence[EntryView]:
        live, _ = self._open(who, id_, acts.LIST, "list files", path=path)
        return [_view(entry) for entry in live.handle.guest.files.list(path)]

    def stat_file(self, who: "Principal", id_: str, path: str) -> EntryView:
        live, _ = self._open(who, id_, acts.LIST, "look at a file", path=path)
        return _view(live.handle.guest.files.stat(path))

    def mkdir(self, who: "Principal", id_: str, body: MkdirBody) -> None:
        live, admission = self._open(who, id_, acts.WRITE, "make a directory", path=body.path)
        with admission:
            admission.begin()
            live.handle.guest.files.mkdir(body.path, mode=body.mode, parents=body.parents)

    def move(self, who: "Principal", id_: str, body: MoveBody) -> None:
        live, admission = self._open(who, id_, acts.WRITE, "move a file", path=body.path)
        self._open(who, id_, acts.WRITE, "move a file", path=body.to)  # judged, a part of the first
        with admission:
            admission.begin()
            live.handle.guest.files.move(body.path, body.to)

    def remove(self, who: "Principal", id_: str, path: str, *, recursive: bool) -> None:
        live, admission = self._open(who, id_, acts.WRITE, "remove a file", path=path)
        with admission:
            admission.begin()
            live.handle.guest.files.remove(path, recursive=recursive)

    def watch(
        self, who: "Principal", id_: str, path: str, *, recursive: bool, wake: int
    ) -> Iterator[Mapping[str, str]]:
        live, admission = self._open(who, id_, acts.LIST, "watch files", path=path)
        live.handle.guest.files.stat(path)  # the agent tells what is wrong with it late
        return admission.over(_changes(live, path, recursive, wake))

    def read_tar(self, who: "Principal", id_: str, path: str) -> Iterator[bytes]:
        live, admission = self._open(who, id_, acts.READ, "read a tree", path=path)
        return admission.over(live.handle.guest.files.read_tar(path))

    def write_tar(
        self,
        who: "Principal",
        id_: str,
        path: str,
        data: Iterable[bytes],
        *,
        whole: bool = False,
        replace: bool = False,
    ) -> None:
        live, admission = self._open(who, id_, acts.WRITE, "write a tree", path=path)
        content = _Hashed(data)
        with admission:
            admission.begin()
            live.handle.guest.files.write_tar(path, content, whole=whole, replace=replace)
            admission.done(input_digest=content.digest)

    def changes(self, who: "Principal", id_: str) -> Sequence[str]:
        who.require("files")  # it tells what ``apply`` would write
        live = self._sandboxes.get(who, id_)
        self._judge(who, live, acts.LIST, path=live.wall.workspace)
        return live.handle.overlay().changes()

    def apply(self, who: "Principal", id_: str) -> None:
        who.require(scope_of(acts.WRITE))
        live = self._sandboxes.get(who, id_)
        with self._judge(who, live, acts.WRITE, path=live.wall.workspace) as admission:
            admission.begin()
            live.handle.overlay().apply()

    def _open(
        self, who: "Principal", id_: str, name: str, doing: str, **parameters: object
    ) -> "tuple[Live, Admission]":
        """``name``: what is to be done, in a capability's words. Raises Forbidden, NotFound,
        Conflict (``doing`` says what for), and what the policy refuses."""
        who.require(scope_of(name))
        live = self._sandboxes.get(who, id_)
        live.require_running(doing)
        return live, self._judge(who, live, name, **parameters)

    def _judge(self, who: "Principal", live: Live, name: str, **parameters: object) -> "Admission":
        act = acts.operation(who, name, live.handle, live.record.labels, **parameters)
        return self._gate.operation(act, live.handle)


class _Hashed:
    """What is streamed in, and its digest once all of it was taken."""

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


def _changes(live: Live, path: str, recursive: bool, wake: int) -> Iterator[Mapping[str, str]]:
    for change in live.handle.guest.files.watch(path, recursive, wake=wake):
        yield {"kind": change.kind, "path": change.path}


def _view(entry: Entry) -> EntryView:
    return EntryView(
        name=entry.name,
        type=entry.type,
        size=entry.size,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime=entry.mtime,
        target=entry.target,
    )
