"""A daemon in memory: sandboxes are dictionaries, and commands are a few words that it knows."""

import asyncio
import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from agentd.model.answer import Answer
from agentd.model.api import (
    ApprovalView,
    AuditHead,
    AuditPage,
    Authorise,
    BackendView,
    CallBody,
    CallView,
    CapabilityView,
    Carry,
    DecideBody,
    EntryView,
    ExecBody,
    KeyBody,
    KeyView,
    LabelsBody,
    MkdirBody,
    MoveBody,
    ProcessView,
    Repeat,
    ResultView,
    RunBody,
    SandboxBody,
    SandboxPage,
    SandboxView,
    SnapshotView,
    Stats,
    Work,
)
from agentd.model.capability import CallFailed
from agentd.model.cause import Cause, CauseCode
from agentd.model.credential import Credential
from agentd.model.decision import Decision
from agentd.model.errors import (
    BackendLost,
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    OperationFailed,
    QuotaExceeded,
    Unauthenticated,
)
from agentd.model.principal import SCOPES, Principal
from agentd.model.result import SandboxInfo, Timing, Usage

PIECE = b"y" * (64 << 10)
_ALL = frozenset(SCOPES) - {"admin"}
KEYS = {
    "agd_alice": Principal("alice", _ALL, "key"),
    "agd_bob": Principal("bob", _ALL, "key"),
    "agd_reader": Principal("alice", frozenset(("read",)), "key"),
}


class Mismatch(InvalidInput):
    code = "idempotency_mismatch"


class Event(msgspec.Struct, frozen=True):
    kind: str
    stream: str = ""
    offset: int = 0
    data: bytes = b""
    length: int = 0
    result: ResultView | None = None


class FakePort:
    """A TCP connection to this machine. Its descriptor is an epoll: readable for either reason."""

    def __init__(self, port: int) -> None:
        try:
            self._socket = socket.create_connection(("127.0.0.1", port), 5)
        except OSError as error:
            raise OperationFailed("nothing listens", errno=error.errno or 0) from None
        self._socket.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._socket, select.EPOLLIN)
        self._was_readable = False

    def fileno(self) -> int:
        return self._epoll.fileno()

    def pending(self) -> bool:
        return False

    def send_some(self, data: bytes) -> int:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            self._epoll.modify(self._socket, select.EPOLLIN | select.EPOLLOUT)
            return 0
        except OSError:
            raise BackendLost("the port closed") from None
        self._epoll.modify(self._socket, select.EPOLLIN)
        return sent

    def recv(self, timeout: float | None = None) -> bytes:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        if not poller.poll(None if timeout is None else timeout * 1000):
            raise TimeoutError
        try:
            return self._socket.recv(1 << 16)
        except ConnectionResetError:
            return b""

    def half_close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._epoll.close()
        self._socket.close()


class FakeProcess:
    """``endless`` bytes of "y" come on stdout as fast as they are read, then the exit."""

    def __init__(self, sandbox: "FakeSandbox", id_: str, body: ExecBody) -> None:
        self.sandbox, self.id, self.body = sandbox, id_, body
        self.argv = ("sh", "-c", body.cmd) if isinstance(body.cmd, str) else body.cmd
        self.lock = threading.Lock()
        self.events: list[Event] = []
        self.sizes = {"stdout": 0, "stderr": 0, "pty": 0}
        self.lost: dict[str, int] = {}
        self.result: ResultView | None = None
        self.endless = 0
        self.signals: list[tuple[int, str]] = []
        self.sizes_seen: list[tuple[int, int]] = []
        self.stdin = b""
        self.stdin_ended = False
        self.blocked = threading.Event()
        self.ended = threading.Event()
        self.followers: list[FakeOutput] = []

    def write(self, stream: str, data: bytes) -> None:
        self._add(Event("data", stream, self.sizes[stream], data, len(data)))
        self.sizes[stream] += len(data)

    def lose(self, stream: str, length: int) -> None:
        self._add(Event("lost", stream, self.sizes[stream], b"", length))
        self.sizes[stream] += length

    def end(self, code: int = 0) -> ResultView:
        self.result = self.view_of(code)
        self._add(Event("exit", result=self.result))
        self.ended.set()
        return self.result

    def view_of(self, code: int) -> ResultView:
        def text(stream: str) -> str:
            found = [e.data for e in self.events if e.stream == stream and e.kind == "data"]
            return b"".join(found).decode("utf-8", "replace")

        return ResultView(
            request_id="req-1",
            status="failed" if code else "ok",
            exit_code=code,
            signal=None,
            cause=Cause.of(CauseCode.EXITED, f"exited with {code}"),
            stdout=text("stdout"),
            stderr=text("stderr"),
            encoding="utf-8",
            truncated=False,
            usage=Usage(),
            timing=Timing(),
            sandbox=SandboxInfo(self.sandbox.id, "fake", "none"),
            enforcement={},
            process=self.id,
        )

    def view(self) -> ProcessView:
        return ProcessView(
            id=self.id,
            sandbox=self.sandbox.id,
            argv=self.argv,
            tag=self.body.tag,
            pid=7,
            state="ended" if self.result else "running",
            started=1.0,
            output=dict(self.sizes),
            result=self.result,
        )

    def _add(self, event: Event) -> None:
        with self.lock:
            self.events.append(event)
            followers = tuple(self.followers)
        for follower in followers:
            follower.notify()


class FakeOutput:
    def __init__(
        self,
        process: FakeProcess,
        cursors: Mapping[str, int],
        notify: Callable[[], None],
        streams: Sequence[str],
    ) -> None:
        self.process, self.notify, self.streams = process, notify, streams
        self._cursors = dict(cursors)
        self._next = 0
        self._endless = cursors.get("stdout", 0)
        self._over = False
        self.closed = False
        with process.lock:
            process.followers.append(self)

    def read(self, limit: int) -> Sequence[Event]:
        if self.process.endless:
            return self._read_endless(limit)
        found: list[Event] = []
        with self.process.lock:
            while self._next < len(self.process.events):
                event = self.process.events[self._next]
                self._next += 1
                if event.kind == "exit":
                    found.append(event)
                elif event.stream in self.streams:
                    skip = max(0, self._cursors.get(event.stream, 0) - event.offset)
                    if skip < event.length:
                        found.append(
                            Event(
                                event.kind,
                                event.stream,
                                event.offset + skip,
                                event.data[skip:],
                                event.length - skip,
                            )
                        )
        return found

    def _read_endless(self, limit: int) -> Sequence[Event]:
        found: list[Event] = []
        while limit > 0 and self._endless < self.process.endless:
            data = PIECE[: self.process.endless - self._endless]
            found.append(Event("data", "stdout", self._endless, data, len(data)))
            self._endless += len(data)
            limit -= len(data)
        if not found and not self._over:
            self._over = True
            found.append(Event("exit", result=self.process.view_of(0)))
        return found

    def close(self) -> None:
        self.closed = True
        with self.process.lock, contextlib.suppress(ValueError):
            self.process.followers.remove(self)


class FakeSandbox:
    def __init__(self, id_: str, owner: str, body: SandboxBody) -> None:
        self.id, self.owner, self.body = id_, owner, body
        self.files: dict[str, bytes] = {"/etc/motd": b"0123456789"}
        self.processes: dict[str, FakeProcess] = {}
        self.watchers: list[tuple[int, list[tuple[str, str]]]] = []
        self.paused = False

    def view(self) -> SandboxView:
        return SandboxView(
            id=self.id,
            state="paused" if self.paused else "ready",
            backend="fake",
            level="none",
            image=self.body.image,
            labels=dict(self.body.labels),
            principal=self.owner,
            created=1.0,
            deadline=None,
            workspace="/workspace",
            enforcement={},
        )

    def changed(self, kind: str, path: str) -> None:
        for fd, changes in self.watchers:
            changes.append((kind, path))
            os.eventfd_write(fd, 1)


class FakeService:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.api_keys: dict[str, KeyView] = {}
        self.kept: dict[str, SnapshotView] = {}
        self.asked: dict[str, ApprovalView] = {}
        self.count = 0
        self.calls: list[str] = []
        self.not_ready = ""
        self.anyone: Principal | None = None
        self.seen: dict[str, Any] = {}
        self.keyed: dict[tuple[str, str], tuple[bytes, asyncio.Task[Answer]]] = {}
        self.failing_reads = False
        self.waiting = threading.Event()
        self.emitted = 0
        self.cancelled: list[object] = []
        self.rest: Callable[[], None] | None = None  # of an end that takes no time

    # who asks

    def peer(self, connection: socket.socket) -> Credential:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("iii", raw)
        return Credential(peer_pid=pid, peer_uid=uid)

    def authenticate(self, credential: Credential) -> Principal:
        """As the gatekeeper, which it is, too."""
        self.seen = {"credential": credential, "thread": threading.get_ident()}
        key = credential.api_key or (credential.authorization or "").removeprefix("Bearer ")
        if key == "agd_hasty":
            raise QuotaExceeded("too fast", retry_after=2.5)
        if key:
            if key not in KEYS:
                raise Unauthenticated("no such key")
            return KEYS[key]
        if credential.certificate is not None:
            return Principal("certified", _ALL, "mtls")
        if credential.peer_uid is not None:
            return Principal(f"uid:{credential.peer_uid}", _ALL, "peer")
        if self.anyone is not None:
            return self.anyone
        raise Unauthenticated("who are you")

    # sandboxes

    def create(self, who: Principal, body: SandboxBody) -> SandboxView:
        who.require("create")
        self.calls.append("create")
        with self.lock:
            self.count += 1
            id_ = f"sbx-{self.count}"
            self.sandboxes[id_] = FakeSandbox(id_, who.name, body)
        return self.sandboxes[id_].view()

    def get_or_create(self, who: Principal, name: str, body: SandboxBody) -> SandboxView:
        who.require("create")
        with self.lock:
            found = self.sandboxes.setdefault(name, FakeSandbox(name, who.name, body))
        return found.view()

    def list(
        self,
        who: Principal,
        labels: Mapping[str, str],
        limit: int,
        cursor: str,
        state: str = "",
    ) -> SandboxPage:
        who.require("read")
        if not 1 <= limit <= 500:
            raise InvalidInput("limit is not from 1 to 500")
        found = [
            s.view()
            for s in tuple(self.sandboxes.values())
            if who.owns(s.owner) and s.id > cursor and labels.items() <= s.body.labels.items()
        ]
        page = tuple(found[:limit])
        return SandboxPage(page, page[-1].id if len(found) > limit else None)

    def relabel(self, who: Principal, id_: str, body: LabelsBody) -> SandboxView:
        return self._sandbox(who, "create", id_).view()

    def get(self, who: Principal, id_: str) -> SandboxView:
        return self._sandbox(who, "read", id_).view()

    def delete(self, who: Principal, id_: str) -> None:
        self._sandbox(who, "create", id_)
        self.sandboxes.pop(id_, None)

    def delete_at_once(self, who: Principal, id_: str) -> Callable[[], None] | None:
        if self.rest is None:
            return None
        self.delete(who, id_)
        return self.rest

    def renew(self, who: Principal, id_: str, ttl: str | float) -> SandboxView:
        return self._sandbox(who, "create", id_).view()

    def pause(self, who: Principal, id_: str) -> SandboxView:
        sandbox = self._sandbox(who, "create", id_)
        sandbox.paused = True
        return sandbox.view()

    def resume(self, who: Principal, id_: str) -> SandboxView:
        sandbox = self._sandbox(who, "create", id_)
        sandbox.paused = False
        return sandbox.view()

    def snapshot(self, who: Principal, id_: str) -> SnapshotView:
        self._sandbox(who, "snapshot", id_)
        view = SnapshotView(f"snp-{len(self.kept)}", id_, "full", 1.0, 10)
        self.kept[view.id] = view
        return view

    def snapshots(self, who: Principal) -> Sequence[SnapshotView]:
        who.require("snapshot")
        return list(self.kept.values())

    def get_snapshot(self, who: Principal, snapshot: str) -> SnapshotView:
        who.require("snapshot")
        if snapshot not in self.kept:
            raise NotFound("there is no such snapshot")
        return self.kept[snapshot]

    def delete_snapshot(self, who: Principal, snapshot: str) -> None:
        who.require("snapshot")
        if self.kept.pop(snapshot, None) is None:
            raise NotFound("there is no such snapshot")

    def fork(self, who: Principal, id_: str, count: int) -> Sequence[SandboxView]:
        sandbox = self._sandbox(who, "snapshot", id_)
        if not 1 <= count <= 64:
            raise InvalidInput("count is not from 1 to 64")
        return [self.create(who, sandbox.body) for _ in range(count)]

    def changes(self, who: Principal, id_: str) -> Sequence[str]:
        return sorted(self._sandbox(who, "files", id_).files)

    def apply(self, who: Principal, id_: str) -> None:
        self._sandbox(who, "files", id_)

    # commands

    def exec(self, who: Principal, id_: str, body: ExecBody) -> ResultView:
        process = self._start(who, id_, body)
        process.ended.wait()
        assert process.result is not None
        return process.result

    def start(self, who: Principal, id_: str, body: ExecBody) -> ProcessView:
        return self._start(who, id_, body).view()

    def run(self, who: Principal, body: RunBody) -> ResultView:
        made = self.create(who, body.sandbox)
        try:
            return self.exec(who, made.id, body.exec)
        finally:
            self.delete(who, made.id)

    def processes(self, who: Principal, id_: str) -> Sequence[ProcessView]:
        return [p.view() for p in tuple(self._sandbox(who, "read", id_).processes.values())]

    def process(self, who: Principal, id_: str, process: str) -> ProcessView:
        return self._process(who, "read", id_, process).view()

    def follow(
        self,
        who: Principal,
        id_: str,
        process: str,
        cursors: Mapping[str, int],
        notify: Callable[[], None],
        streams: Sequence[str] = ("stdout", "stderr", "pty"),
    ) -> FakeOutput:
        return FakeOutput(self._process(who, "read", id_, process), cursors, notify, streams)

    def stdin(self, who: Principal, id_: str, process: str, data: bytes, *, eof: bool) -> None:
        found = self._process(who, "run", id_, process)
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

    def signal(self, who: Principal, id_: str, process: str, signal: int, target: str) -> None:
        found = self._process(who, "run", id_, process)
        if not 0 < signal < 65 or target not in ("group", "sandbox"):
            raise InvalidInput("there is no such signal or target")
        found.signals.append((signal, target))
        found.blocked.set()
        if found.result is None:
            found.end(128 + signal)

    def resize(self, who: Principal, id_: str, process: str, rows: int, cols: int) -> None:
        self._process(who, "run", id_, process).sizes_seen.append((rows, cols))

    # files

    def read_file(
        self, who: Principal, id_: str, path: str, offset: int = 0, length: int | None = None
    ) -> Iterator[bytes]:
        data = self._file(self._sandbox(who, "read", id_), path)
        end = len(data) if length is None else offset + length
        for at in range(offset, min(end, len(data)), 64 << 10):
            if self.failing_reads and at >= 512 << 10:
                raise BackendLost("the wall died")
            yield data[at : min(at + (64 << 10), end)]

    def write_file(
        self,
        who: Principal,
        id_: str,
        path: str,
        data: Iterable[bytes],
        *,
        mode: int = 0o644,
        parents: bool = False,
    ) -> int:
        sandbox = self._sandbox(who, "files", id_)
        self.calls.append("write_file")
        if path == "/full":
            raise OperationFailed("no space", errno=errno.ENOSPC)
        whole = b"".join(data)
        sandbox.files[path] = whole
        sandbox.changed("modified", path)
        return len(whole)

    def list_files(self, who: Principal, id_: str, path: str) -> Sequence[EntryView]:
        sandbox = self._sandbox(who, "read", id_)
        return [self._entry(sandbox, found) for found in sorted(sandbox.files)]

    def stat_file(self, who: Principal, id_: str, path: str) -> EntryView:
        return self._entry(self._sandbox(who, "read", id_), path)

    def mkdir(self, who: Principal, id_: str, body: MkdirBody) -> None:
        self._sandbox(who, "files", id_)

    def move(self, who: Principal, id_: str, body: MoveBody) -> None:
        sandbox = self._sandbox(who, "files", id_)
        data = self._file(sandbox, body.path)
        sandbox.files.pop(body.path, None)
        sandbox.files[body.to] = data

    def remove(self, who: Principal, id_: str, path: str, *, recursive: bool) -> None:
        sandbox = self._sandbox(who, "files", id_)
        self._file(sandbox, path)
        sandbox.files.pop(path, None)

    def watch(
        self, who: Principal, id_: str, path: str, *, recursive: bool, wake: int
    ) -> Iterator[Mapping[str, str]]:
        sandbox = self._sandbox(who, "read", id_)
        self._entry(sandbox, path)
        return self._watch(sandbox, wake)

    def _watch(self, sandbox: Any, wake: int) -> Iterator[Mapping[str, str]]:
        fd, changes = os.eventfd(0), []  # type: ignore[var-annotated]
        sandbox.watchers.append((fd, changes))
        try:
            while True:
                ready, _, _ = select.select([fd, wake], [], [])
                if wake in ready:
                    return
                os.eventfd_read(fd)
                while changes:
                    kind, found = changes.pop(0)
                    yield {"kind": kind, "path": found}
        finally:
            sandbox.watchers.remove((fd, changes))
            os.close(fd)

    def read_tar(self, who: Principal, id_: str, path: str) -> Iterator[bytes]:
        self._sandbox(who, "read", id_)
        yield from (b"tar of ", path.encode())
        if path.startswith("/broken"):  # "/broken/N": after so many bytes, and the reason
            yield from (bytes(64 << 10) for _ in range(int(path.rpartition("/")[2]) >> 16))
            yield b"why it broke"
            raise OperationFailed("it broke", errno=22)

    def write_tar(
        self,
        who: Principal,
        id_: str,
        path: str,
        data: Iterable[bytes],
        *,
        whole: bool = False,
        replace: bool = False,
    ) -> None:
        self._sandbox(who, "files", id_).files[path + "#tar"] = b"".join(data)

    # ports

    def tunnel(self, who: Principal, id_: str, port: int) -> FakePort:
        self._sandbox(who, "ports", id_)
        return FakePort(port)

    # keys

    def create_key(self, who: Principal, body: KeyBody) -> KeyView:
        who.require("keys")
        if unknown := set(body.scopes) - set(SCOPES):
            raise InvalidInput(f"there is no scope {unknown.pop()[:64]!r}")
        if not set(body.scopes) <= who.scopes:
            raise Forbidden("more than you have")
        view = KeyView(f"k{len(self.api_keys)}", body.name, body.scopes, 1.0, None, False)
        self.api_keys[view.id] = view
        return msgspec.structs.replace(view, secret="agd_secret")

    def key(self, who: Principal, key: str) -> KeyView:
        who.require("keys")
        if key not in self.api_keys:
            raise NotFound("there is no such key")
        return self.api_keys[key]

    def keys(self, who: Principal) -> Sequence[KeyView]:
        who.require("keys")
        return list(self.api_keys.values())

    def revoke_key(self, who: Principal, key: str) -> None:
        who.require("keys")
        if self.api_keys.pop(key, None) is None:
            raise NotFound("there is no such key")

    # capabilities

    def capabilities(self, who: Principal) -> Sequence[CapabilityView]:
        who.require("read")
        return [CapabilityView("echo.v1", "what it is told"), CapabilityView("odd.v1", blocker="x")]

    def call(
        self,
        who: Principal,
        body: CallBody,
        raw: bytes,
        *,
        emit: Callable[[str, bytes], None] | None = None,
        cancel: int = -1,
    ) -> CallView:
        """``echo.v1`` emits and answers its parameters; ``fail.v1`` cannot be had; ``endless.v1``
        emits, and ``wait.v1`` waits, until nobody follows any more."""
        who.require("run")
        self.calls.append("call")
        self.seen["raw"] = raw
        if body.capability == "crash.v1":
            raise RuntimeError("a secret of the daemon")
        if body.capability == "endless.v1" and emit is not None:
            self._emit_for_ever(emit, bytes(int(body.parameters["size"])))
        if body.capability == "wait.v1":
            self.waiting.set()
            poller = select.poll()
            poller.register(cancel, select.POLLIN)
            self.cancelled.append(bool(poller.poll(None if cancel >= 0 else 0)))
            return msgspec.structs.replace(self._view_of(body), status="failed")
        if body.capability == "fail.v1":
            raise CallFailed("no_match", "the text is not in the file")
        if body.capability != "echo.v1":
            raise NotFound(f"there is no capability {body.capability[:64]!r}")
        if emit is not None:
            emit("stdout", b"a piece")
        return self._view_of(body)

    def _emit_for_ever(self, emit: Callable[[str, bytes], None], data: bytes) -> None:
        try:
            while True:
                emit("stdout", data)
                self.emitted += 1
        except BaseException as error:
            self.cancelled.append(error)
            raise

    def _view_of(self, body: CallBody) -> CallView:
        return CallView(
            request_id="req-1",
            capability=body.capability,
            status="ok",
            value=body.parameters,
            cause=Cause.of(CauseCode.EXITED, "done"),
            decision=Decision(allow=True),
            usage=Usage(),
            timing=Timing(1.0, 1.0, 2.0),
            sandbox=None,
            enforcement={},
            receipt="req-1",
        )

    def receipt(self, who: Principal, id_: str) -> bytes:
        who.require("read")
        if id_ != "req-1":
            raise NotFound(f"there is no receipt {id_[:64]!r}")
        return b'{"payload": ""}'

    def receipt_key(self, who: Principal) -> str:
        who.require("read")
        return "a key"

    # the audit log

    def audit_head(self, who: Principal) -> AuditHead:
        who.require("admin")
        return AuditHead(f"1:{'0' * 64}", 1)

    def audit_records(self, who: Principal, first: int, limit: int) -> AuditPage:
        who.require("admin")
        return AuditPage(())

    # approvals

    def approvals(self, who: Principal) -> Sequence[ApprovalView]:
        who.require("read")
        return list(self.asked.values())

    def approval(self, who: Principal, id_: str) -> ApprovalView:
        who.require("read")
        if id_ not in self.asked:
            raise NotFound(f"there is no approval {id_[:64]!r}")
        return self.asked[id_]

    def decide_approval(self, who: Principal, id_: str, body: DecideBody) -> ApprovalView:
        who.require("approve")
        found = self.approval(who, id_)
        if found.state != "pending":
            raise Conflict(f"it is {found.state}")
        state = "approved" if body.allow else "denied"
        self.asked[id_] = msgspec.structs.replace(
            found, state=state, decided=2.0, decided_by=who.name, note=body.note
        )
        return self.asked[id_]

    # the daemon itself

    def version(self) -> Mapping[str, str]:
        return {"agentd": "0.0.fake", "api": "v1"}

    def backends(self, who: Principal) -> Sequence[BackendView]:
        who.require("read")
        return [BackendView("fake", "none", True, (), ())]

    def stats(self, who: Principal) -> Stats:
        who.require("read")
        return Stats(len(self.sandboxes), 0, {}, 0, {})

    def ready(self) -> str:
        return self.not_ready

    def withdraw_approval(self, who: Principal, id_: str) -> ApprovalView:
        raise NotFound(f"there is no approval {id_!r}")

    def readmit(self, who: Principal, repeat: Repeat, approved: frozenset[str] | None) -> None:
        who.require("files" if repeat.body is None else "run")

    async def once(
        self,
        who: Principal,
        key: str,
        request: bytes,
        work: Work,
        carry: Carry,
        *,
        lasting: bool = True,
        authorise: Authorise | None = None,
    ) -> Answer:
        found = self.keyed.get((who.name, key))
        if found is None:
            task = asyncio.ensure_future(carry(work))
            self.keyed[who.name, key] = request, task
            try:
                return await asyncio.shield(task)
            except InvalidInput:
                del self.keyed[who.name, key]
                raise
        if authorise is not None:
            authorise(None)
        if found[0] != request:
            raise Mismatch("the key was used for another request")
        return msgspec.structs.replace(await asyncio.shield(found[1]), replayed=True)

    # -- inside --

    def _sandbox(self, who: Principal, scope: str, id_: str) -> FakeSandbox:
        who.require(scope)
        found = self.sandboxes.get(id_)
        if found is None or not who.owns(found.owner):
            raise NotFound(f"there is no sandbox {id_[:64]!r}")
        return found

    def _process(self, who: Principal, scope: str, id_: str, process: str) -> FakeProcess:
        found = self._sandbox(who, scope, id_).processes.get(process)
        if found is None:
            raise NotFound(f"there is no process {process[:64]!r}")
        return found

    def _file(self, sandbox: FakeSandbox, path: str) -> bytes:
        if path not in sandbox.files:
            raise OperationFailed(f"{path[:200]!r}: no such file", errno=errno.ENOENT)
        return sandbox.files[path]

    def _entry(self, sandbox: FakeSandbox, path: str) -> EntryView:
        data = self._file(sandbox, path)
        size = 0 if path.startswith("/proc/") else len(data)
        return EntryView(path, "file", size, 0o644, 0, 0, 1.0)

    def _start(self, who: Principal, id_: str, body: ExecBody) -> FakeProcess:
        sandbox = self._sandbox(who, "run", id_)
        if sandbox.paused:
            raise Conflict("the sandbox is paused", remediation="resume it first")
        self.calls.append("exec")
        with self.lock:
            self.count += 1
            process = FakeProcess(sandbox, f"p{self.count}", body)
            sandbox.processes[process.id] = process
        match process.argv:
            case ("echo", *words):
                process.write("stdout", " ".join(words).encode() + b"\n")
                process.end()
            case ("endless", count):
                process.endless = int(count)
            case ("crash",):
                raise RuntimeError("a secret of the daemon")
            case ("sleep", seconds):
                threading.Timer(float(seconds), process.end).start()
            case ("cat",) | ("wait",) | ("deaf",):
                pass
            case _:
                process.write("stderr", b"unknown\n")
                process.end(127)
        return process


def until(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    """Wait for it; an AssertionError if it never comes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
