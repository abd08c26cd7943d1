"""Sandboxes in memory: files are a dictionary, and commands are a few words that it knows."""

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Mapping, Sequence

from agentd.model.api import EntryView, ExecBody, ProcessView, ResultView, SandboxBody, SandboxView
from agentd.model.errors import BackendLost, OperationFailed
from agentd.model.output import OutputEvent
from agentd.model.result import Cause, CauseCode, SandboxInfo, Timing, Usage

PIECE = b"y" * (64 << 10)


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
        self.events: list[OutputEvent] = []
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

    def begin(self) -> None:
        match self.argv:
            case ("echo", *words):
                self.write("stdout", " ".join(words).encode() + b"\n")
                self.end()
            case ("endless", count):
                self.endless = int(count)
            case ("crash",):
                raise RuntimeError("a secret of the daemon")
            case ("sleep", seconds):
                threading.Timer(float(seconds), self.end).start()
            case ("cat",) | ("wait",) | ("deaf",):
                pass
            case _:
                self.write("stderr", b"unknown\n")
                self.end(127)

    def write(self, stream: str, data: bytes) -> None:
        self._add(OutputEvent("data", stream, self.sizes[stream], data, len(data)))
        self.sizes[stream] += len(data)

    def lose(self, stream: str, length: int) -> None:
        self._add(OutputEvent("lost", stream, self.sizes[stream], b"", length))
        self.sizes[stream] += length

    def end(self, code: int = 0) -> ResultView:
        self.result = self.view_of(code)
        self._add(OutputEvent("exit", result=self.result))
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

    def _add(self, event: OutputEvent) -> None:
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

    def read(self, limit: int) -> Sequence[OutputEvent]:
        if self.process.endless:
            return self._read_endless(limit)
        found: list[OutputEvent] = []
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
                            OutputEvent(
                                event.kind,
                                event.stream,
                                event.offset + skip,
                                event.data[skip:],
                                event.length - skip,
                            )
                        )
        return found

    def _read_endless(self, limit: int) -> Sequence[OutputEvent]:
        found: list[OutputEvent] = []
        while limit > 0 and self._endless < self.process.endless:
            data = PIECE[: self.process.endless - self._endless]
            found.append(OutputEvent("data", "stdout", self._endless, data, len(data)))
            self._endless += len(data)
            limit -= len(data)
        if not found and not self._over:
            self._over = True
            found.append(OutputEvent("exit", result=self.process.view_of(0)))
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

    def file(self, path: str) -> bytes:
        if path not in self.files:
            raise OperationFailed(f"{path[:200]!r}: no such file", errno=errno.ENOENT)
        return self.files[path]

    def entry(self, path: str) -> EntryView:
        data = self.file(path)
        size = 0 if path.startswith("/proc/") else len(data)
        return EntryView(path, "file", size, 0o644, 0, 0, 1.0)

    def changed(self, kind: str, path: str) -> None:
        for fd, changes in self.watchers:
            changes.append((kind, path))
            os.eventfd_write(fd, 1)
