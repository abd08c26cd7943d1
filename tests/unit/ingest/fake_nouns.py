"""Sandboxes, commands and files of a daemon in memory, bound to a caller."""

import errno
import os
import select
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from tests.unit.ingest.fake_sandbox import FakeOutput, FakeProcess, FakeSandbox

from agentd.model.api import (
    ChangeView,
    EntryView,
    ExecBody,
    ProcessView,
    ResultView,
    RunBody,
    SandboxBody,
    SandboxView,
    SnapshotView,
)
from agentd.model.content import Content
from agentd.model.errors import (
    BackendLost,
    Conflict,
    InvalidInput,
    NotFound,
    OperationFailed,
)
from agentd.model.image import ImageView
from agentd.model.output import STREAMS
from agentd.model.principal import Principal

if TYPE_CHECKING:
    from tests.unit.ingest.fake import FakeDaemon

_AS_USUAL = SandboxBody()


class Noun:
    def __init__(self, daemon: "FakeDaemon", who: Principal) -> None:
        self.daemon, self.who = daemon, who

    def sandbox(self, scope: str, id_: str) -> FakeSandbox:
        self.who.require(scope)
        found = self.daemon.sandboxes.get(id_)
        if found is None or not self.who.owns(found.owner):
            raise NotFound(f"there is no sandbox {id_[:64]!r}")
        return found


class FakeSandboxes(Noun):
    def create(self, body: SandboxBody = _AS_USUAL) -> SandboxView:
        self.who.require("create")
        self.daemon.calls.append("create")
        id_ = f"sbx-{self.daemon.number()}"
        made = self.daemon.sandboxes[id_] = FakeSandbox(id_, self.who.name, body)
        return made.view()

    def get_or_create(self, name: str, body: SandboxBody = _AS_USUAL) -> SandboxView:
        self.who.require("create")
        made = FakeSandbox(name, self.who.name, body)
        return self.daemon.sandboxes.setdefault(name, made).view()

    def list(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        state: str | None = None,
        after: str = "",
        limit: int | None = None,
    ) -> tuple[SandboxView, ...]:
        self.who.require("read")
        wanted = (labels or {}).items()
        found = (
            s.view()
            for s in tuple(self.daemon.sandboxes.values())
            if self.who.owns(s.owner) and s.id > after and wanted <= s.body.labels.items()
        )
        return tuple(islice(found, limit))

    def get(self, id: str) -> SandboxView:
        return self.sandbox("read", id).view()

    def relabel(self, id: str, labels: Mapping[str, str | None]) -> SandboxView:
        return self.sandbox("create", id).view()

    def renew(self, id: str, ttl: str | float) -> SandboxView:
        return self.sandbox("create", id).view()

    def pause(self, id: str) -> SandboxView:
        sandbox = self.sandbox("create", id)
        sandbox.paused = True
        return sandbox.view()

    def resume(self, id: str) -> SandboxView:
        sandbox = self.sandbox("create", id)
        sandbox.paused = False
        return sandbox.view()

    def kill(self, id: str) -> None:
        self.sandbox("create", id)
        self.daemon.sandboxes.pop(id, None)

    def kill_at_once(self, id: str) -> Callable[[], None] | None:
        if self.daemon.rest is None:
            return None
        self.kill(id)
        return self.daemon.rest

    def snapshot(self, id: str) -> SnapshotView:
        self.sandbox("snapshot", id)
        view = SnapshotView(f"snp-{len(self.daemon.kept)}", id, "full", 1.0, 10)
        self.daemon.kept[view.id] = view
        return view

    def fork(self, id: str, count: int = 1) -> tuple[SandboxView, ...]:
        sandbox = self.sandbox("snapshot", id)
        if not 1 <= count <= 64:
            raise InvalidInput("count is not from 1 to 64")
        return tuple(self.create(sandbox.body) for _ in range(count))

    def commit(self, id: str, name: str) -> ImageView:
        self.sandbox("admin", id)
        return ImageView(name, f"sha256:{'0' * 64}", 2, 10)

    def changes(self, id: str) -> tuple[str, ...]:
        return tuple(sorted(self.sandbox("files", id).files))

    def apply(self, id: str) -> None:
        self.sandbox("files", id)


class FakeCommands(Noun):
    def exec(self, sandbox: str, body: ExecBody) -> ResultView:
        process = self._start(sandbox, body)
        process.ended.wait()
        assert process.result is not None
        return process.result

    def start(self, sandbox: str, body: ExecBody) -> ProcessView:
        return self._start(sandbox, body).view()

    def run(self, body: RunBody) -> ResultView:
        sandboxes = FakeSandboxes(self.daemon, self.who)
        made = sandboxes.create(body.sandbox)
        try:
            return self.exec(made.id, body.exec)
        finally:
            sandboxes.kill(made.id)

    def list(self, sandbox: str) -> tuple[ProcessView, ...]:
        return tuple(p.view() for p in tuple(self.sandbox("read", sandbox).processes.values()))

    def get(self, sandbox: str, process: str) -> ProcessView:
        return self._process("read", sandbox, process).view()

    def output(self, sandbox: str, process: str, stream: str = "stdout", start: int = 0) -> bytes:
        output = self.follow(sandbox, process, {stream: start}, lambda: None, (stream,))
        return b"".join(event.data for event in output.read(1 << 30))

    def follow(
        self,
        sandbox: str,
        process: str,
        cursors: Mapping[str, int],
        notify: Callable[[], None],
        streams: Sequence[str] = STREAMS,
    ) -> FakeOutput:
        return FakeOutput(self._process("read", sandbox, process), cursors, notify, streams)

    def write(self, sandbox: str, process: str, data: bytes, *, eof: bool = False) -> None:
        found = self._process("run", sandbox, process)
        if found.result is not None or found.stdin_ended:
            raise Conflict("it reads no more")
        if found.argv[0] == "deaf" and data:
            found.blocked.wait()
            return
        found.stdin += data
        if found.argv[0] == "cat" and data:
            found.write("stdout", data)
        if eof:
            found.stdin_ended = True
            if found.argv[0] == "cat":
                found.end()

    def signal(self, sandbox: str, process: str, signal: int = 15, target: str = "group") -> None:
        found = self._process("run", sandbox, process)
        if not 0 < signal < 65 or target not in ("group", "sandbox"):
            raise InvalidInput("there is no such signal or target")
        found.signals.append((signal, target))
        found.blocked.set()
        if found.result is None:
            found.end(128 + signal)

    def resize(self, sandbox: str, process: str, rows: int, cols: int) -> None:
        self._process("run", sandbox, process).sizes_seen.append((rows, cols))

    def _process(self, scope: str, id_: str, process: str) -> FakeProcess:
        found = self.sandbox(scope, id_).processes.get(process)
        if found is None:
            raise NotFound(f"there is no process {process[:64]!r}")
        return found

    def _start(self, id_: str, body: ExecBody) -> FakeProcess:
        sandbox = self.sandbox("run", id_)
        if sandbox.paused:
            raise Conflict("the sandbox is paused", remediation="resume it first")
        self.daemon.calls.append("exec")
        process = FakeProcess(sandbox, f"p{self.daemon.number()}", body)
        sandbox.processes[process.id] = process
        process.begin()
        return process


class FakeFiles(Noun):
    def read(self, sandbox: str, path: str, offset: int = 0, length: int | None = None) -> Content:
        data = self.sandbox("read", sandbox).file(path)
        size = self.sandbox("read", sandbox).entry(path).size
        if not size:
            offset, length = 0, None
        first = offset if offset >= 0 else max(0, size + offset)
        return Content(self._pieces(data, first, length), first, size or None)

    def _pieces(self, data: bytes, offset: int, length: int | None) -> Iterator[bytes]:
        end = len(data) if length is None else offset + length
        for at in range(offset, min(end, len(data)), 64 << 10):
            if self.daemon.failing_reads and at >= 512 << 10:
                raise BackendLost("the wall died")
            yield data[at : min(at + (64 << 10), end)]

    def write(
        self,
        sandbox: str,
        path: str,
        data: Iterable[bytes],
        *,
        mode: int = 0o644,
        parents: bool = False,
    ) -> int:
        found = self.sandbox("files", sandbox)
        self.daemon.calls.append("write_file")
        if path == "/full":
            raise OperationFailed("no space", errno=errno.ENOSPC)
        whole = b"".join(data)
        found.files[path] = whole
        found.changed("modified", path)
        return len(whole)

    def list(self, sandbox: str, path: str) -> tuple[EntryView, ...]:
        found = self.sandbox("read", sandbox)
        return tuple(found.entry(name) for name in sorted(found.files))

    def stat(self, sandbox: str, path: str) -> EntryView:
        return self.sandbox("read", sandbox).entry(path)

    def mkdir(self, sandbox: str, path: str, *, mode: int = 0o755, parents: bool = False) -> None:
        self.sandbox("files", sandbox)

    def move(self, sandbox: str, path: str, to: str) -> None:
        found = self.sandbox("files", sandbox)
        data = found.file(path)
        found.files.pop(path, None)
        found.files[to] = data

    def remove(self, sandbox: str, path: str, *, recursive: bool = False) -> None:
        found = self.sandbox("files", sandbox)
        found.file(path)
        found.files.pop(path, None)

    def watch(
        self, sandbox: str, path: str, *, recursive: bool = False, wake: int = -1
    ) -> Iterator[ChangeView]:
        found = self.sandbox("read", sandbox)
        found.entry(path)
        return _watch(found, wake)

    def read_tar(self, sandbox: str, path: str) -> Iterator[bytes]:
        self.sandbox("read", sandbox)
        yield from (b"tar of ", path.encode())
        if path.startswith("/broken"):  # "/broken/N": after so many bytes, and the reason
            yield from (bytes(64 << 10) for _ in range(int(path.rpartition("/")[2]) >> 16))
            yield b"why it broke"
            raise OperationFailed("it broke", errno=22)

    def write_tar(
        self,
        sandbox: str,
        path: str,
        data: Iterable[bytes],
        *,
        whole: bool = False,
        replace: bool = False,
    ) -> None:
        self.sandbox("files", sandbox).files[path + "#tar"] = b"".join(data)


def _watch(sandbox: FakeSandbox, wake: int) -> Iterator[ChangeView]:
    fd = os.eventfd(0)
    changes: list[tuple[str, str]] = []
    sandbox.watchers.append((fd, changes))
    try:
        while True:
            ready, _, _ = select.select([fd, wake], [], [])
            if wake in ready:
                return
            os.eventfd_read(fd)
            while changes:
                yield ChangeView(*changes.pop(0))
    finally:
        sandbox.watchers.remove((fd, changes))
        os.close(fd)
