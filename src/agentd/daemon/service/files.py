"""Files of a sandbox, and trees of them as tar, through its agent."""

from collections.abc import Iterable, Iterator, Mapping

from agentd.daemon.service.live import Live
from agentd.model.api import EntryView, MkdirBody, MoveBody
from agentd.transport.files import Entry


class Files:
    """Each call is one operation of the agent. Paths are those inside."""

    def read(self, live: Live, path: str, offset: int, length: int | None) -> Iterator[bytes]:
        live.require_running("read a file")
        return live.handle.guest.files.read_iter(path, offset, length)

    def write(self, live: Live, path: str, data: Iterable[bytes], mode: int, parents: bool) -> int:
        live.require_running("write a file")
        return live.handle.guest.files.write(path, data, mode=mode, parents=parents)

    def list(self, live: Live, path: str) -> "list[EntryView]":
        live.require_running("list files")
        return [_view(entry) for entry in live.handle.guest.files.list(path)]

    def stat(self, live: Live, path: str) -> EntryView:
        live.require_running("look at a file")
        return _view(live.handle.guest.files.stat(path))

    def mkdir(self, live: Live, body: MkdirBody) -> None:
        live.require_running("make a directory")
        live.handle.guest.files.mkdir(body.path, mode=body.mode, parents=body.parents)

    def move(self, live: Live, body: MoveBody) -> None:
        live.require_running("move a file")
        live.handle.guest.files.move(body.path, body.to)

    def remove(self, live: Live, path: str, recursive: bool) -> None:
        live.require_running("remove a file")
        live.handle.guest.files.remove(path, recursive=recursive)

    def read_tar(self, live: Live, path: str) -> Iterator[bytes]:
        live.require_running("read a tree")
        return live.handle.guest.files.read_tar(path)

    def write_tar(
        self, live: Live, path: str, data: Iterable[bytes], whole: bool, replace: bool
    ) -> None:
        live.require_running("write a tree")
        live.handle.guest.files.write_tar(path, data, whole=whole, replace=replace)

    def watch(
        self, live: Live, path: str, recursive: bool, wake: int
    ) -> Iterator[Mapping[str, str]]:
        live.require_running("watch files")
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
