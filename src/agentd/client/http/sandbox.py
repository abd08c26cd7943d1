"""A sandbox of a daemon, as the SDK and the command line hold it."""

import os
import warnings
import weakref
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Unpack

import msgspec

from agentd.client.http import calls, wire
from agentd.client.http import client as clients
from agentd.client.http.address import Address
from agentd.client.http.client import HttpClient, segment
from agentd.client.http.command import MAX_CAPTURE, RemoteCommand
from agentd.client.http.errors import Unreachable
from agentd.client.http.files import RemoteFiles
from agentd.client.http.service import HttpCommands, HttpSandboxes, HttpSnapshots
from agentd.model.api import (
    CallBody,
    CallView,
    ForkBody,
    ProcessView,
    ResultView,
    SandboxView,
    SnapshotView,
)
from agentd.model.enforcement import Control
from agentd.model.errors import AgentdError, Conflict, InvalidInput, NotFound, SandboxError
from agentd.model.options import SandboxOptions
from agentd.model.result import Result, SandboxInfo
from agentd.model.spec import ExecRequest

if TYPE_CHECKING:
    from agentd.client.http.calls import Emit
    from agentd.client.ports import Snapshot

ROOT = "/v1/sandboxes"
# Stdin up to this size goes in the request; larger ones are streamed.
MAX_INLINE = 8 << 20


class RemoteSnapshot:
    """A snapshot that the daemon keeps. In a with statement it is deleted at the end."""

    path = None

    def __init__(self, address: Address, view: SnapshotView) -> None:
        self._address = address
        self.id = view.id
        self.fidelity = view.fidelity
        self.created = view.created
        self.size = view.bytes

    def delete(self) -> None:
        """Idempotent. Sandboxes that were made of it stay as they are."""
        client = clients.shared(self._address)
        try:
            with suppress(NotFound):
                HttpSnapshots(client).delete(self.id)
        finally:
            clients.release(client)

    def __enter__(self) -> "RemoteSnapshot":
        return self

    def __exit__(self, *exc: object) -> None:
        self.delete()

    def __repr__(self) -> str:
        return f"<Snapshot {self.id} {self.fidelity} at {self._address}>"


class RemoteSandbox:
    lasting = True
    """False where it ends with this object: it was made at a daemon that nobody named."""

    def __init__(self, client: HttpClient, view: SandboxView) -> None:
        """``client`` is one of ``clients.shared``, and is released with this."""
        self.client = client
        self.view = view
        self.path = f"{ROOT}/{segment(view.id)}"
        self._ended = False
        self._owner = os.getpid()
        self._release = weakref.finalize(self, clients.release, client)

    @property
    def id(self) -> str:
        return self.view.id

    @property
    def url(self) -> str:
        return str(self.client.address)

    @property
    def state(self) -> str:
        return "ended" if self._ended else self.view.state

    @property
    def labels(self) -> Mapping[str, str]:
        return self.view.labels

    @property
    def info(self) -> SandboxInfo:
        return wire.info(self.view)

    @property
    def enforcement(self) -> dict[str, Control]:
        return self.view.enforcement

    @property
    def files(self) -> RemoteFiles:
        self._check()
        return RemoteFiles(self.client, self.path)

    def execute(self, request: ExecRequest, stdin: bytes, wake: int = -1) -> Result:
        self._check()
        if len(stdin) > MAX_INLINE:
            from agentd.model.drive import execute

            with self.start(msgspec.structs.replace(request, stdin=True), capture=True) as running:
                return execute(running, stdin, wake)
        tag = f"run-{clients.new_key()}"
        body = wire.exec_body(
            msgspec.structs.replace(request, tag=tag, stdin=False), stdin or None, wait=True
        )
        # A unix socket's connection breaks with its daemon alone, and the command with that: a key,
        # which costs the daemon a write to disk, could only tell that it was interrupted.
        once = not self.client.address.path
        try:
            view = self.client.call(
                "POST",
                f"{self.path}/exec",
                body,
                into=ResultView,
                once=once,
                wake=wake,
                on_wake=None if wake < 0 else lambda: self._ended_by_us(tag),
            )
        except AgentdError:
            raise
        except BaseException:
            # Interrupted: nobody waits for it any more.
            self._ended_by_us(tag)
            raise
        return self._completed(view)

    def _ended_by_us(self, tag: str) -> bool:
        """Kill the command with that tag; False where it has perhaps not begun yet."""
        try:
            self.client.call("POST", f"{self.path}/processes/{tag}/signal", {"signal": 9})
        except (Conflict, Unreachable):
            return True
        except AgentdError:
            return False
        return True

    def start(self, request: ExecRequest, *, capture: bool = False) -> RemoteCommand:
        self._check()
        body = wire.exec_body(request, wait=False)
        view = self.client.call("POST", f"{self.path}/exec", body, into=ProcessView, once=True)
        return RemoteCommand(
            self.client,
            self._process(view.id),
            view.id,
            pid=view.pid,
            stdin=request.stdin,
            pty=request.pty is not None,
            capture=capture,
        )

    def attach(self, process: str, cursors: Mapping[str, int]) -> RemoteCommand:
        self._check()
        view = self.process(process)
        return RemoteCommand(
            self.client,
            self._process(view.id),
            view.id,
            pid=view.pid,
            stdin=True,
            pty="pty" in view.output,
            cursors=cursors,
        )

    def process(self, process: str) -> ProcessView:
        return HttpCommands(self.client).get(self.id, process)

    def processes(self) -> tuple[ProcessView, ...]:
        return HttpCommands(self.client).list(self.id)

    def changes(self) -> tuple[str, ...]:
        self._check()
        return tuple(self.client.call("GET", f"{self.path}/changes", into=tuple[str, ...]))

    def apply(self) -> None:
        self._check()
        self.client.call("POST", f"{self.path}/apply")

    def pause(self) -> None:
        self._check()
        self.view = HttpSandboxes(self.client).pause(self.id)

    def resume(self) -> None:
        self._check()
        self.view = HttpSandboxes(self.client).resume(self.id)

    def renew(self, ttl: str | float) -> None:
        self._check()
        self.view = HttpSandboxes(self.client).renew(self.id, ttl)

    def snapshot(self, path: str | os.PathLike[str] | None) -> RemoteSnapshot:
        self._check()
        if path is not None:
            raise InvalidInput(
                "a daemon keeps its snapshots itself", remediation="leave out the path"
            )
        view = self.client.call("POST", f"{self.path}/snapshot", into=SnapshotView)
        return RemoteSnapshot(self.client.address, view)

    def fork(self, count: int) -> "Sequence[RemoteSandbox]":
        self._check()
        body = ForkBody(count=count)
        views = self.client.call("POST", f"{self.path}/fork", body, into=tuple[SandboxView, ...])
        made = [RemoteSandbox(clients.shared(self.client.address), view) for view in views]
        for copy in made:
            copy.lasting = self.lasting
        return made

    def ping(self) -> dict[str, object]:
        """Its agent is asked for its root directory."""
        self._check()
        entry = self.files.stat("/")
        return {"root": {"mode": entry.mode, "uid": entry.uid}}

    def refresh(self) -> SandboxView:
        """What the daemon says of it now, with its usage."""
        self.view = HttpSandboxes(self.client).get(self.id)
        return self.view

    def kill(self) -> None:
        if not self._ended:
            self._ended = True
            try:
                with suppress(NotFound):
                    HttpSandboxes(self.client).kill(self.id)
            finally:
                self._release()

    def forget(self) -> None:
        if self.lasting or self._ended or os.getpid() != self._owner:
            self._release()
            return
        with suppress(AgentdError):
            self.kill()
        warnings.warn(
            f"sandbox {self.id} was never closed (use it in a with statement)",
            ResourceWarning,
            stacklevel=3,
        )

    def _process(self, process: str) -> str:
        return f"{self.path}/processes/{segment(process)}"

    def _completed(self, view: ResultView) -> Result:
        """The answer holds the begin of a long output; the rest is in the journal."""
        found = wire.result(view)
        if not view.truncated or view.process is None:
            return found
        stdout = found.stdout + self._rest(view.process, "stdout", len(found.stdout))
        stderr = found.stderr + self._rest(view.process, "stderr", len(found.stderr))
        cut = self._incomplete(view.process, stdout=stdout, stderr=stderr)
        return msgspec.structs.replace(found, stdout=stdout, stderr=stderr, truncated=cut)

    def _incomplete(self, process: str, **outputs: bytes) -> bool:
        """Whether something is missing beyond what the answer had no room for."""
        try:
            known = self.process(process)
        except AgentdError:
            return True
        return (
            known.result is None
            or known.result.truncated
            or bool(known.lost)
            or any(len(data) < known.output.get(name, 0) for name, data in outputs.items())
        )

    def _rest(self, process: str, stream: str, begin: int) -> bytes:
        found = bytearray()
        with suppress(AgentdError):
            for piece in self.output(process, stream, begin):
                found += piece[: MAX_CAPTURE - begin - len(found)]
        return bytes(found)

    def output(
        self, process: str, stream: str, begin: int = 0, *, follow: bool = False
    ) -> Iterator[bytes]:
        """One stream's bytes from ``begin`` on."""
        query = {"stream": stream, "from": begin, "follow": follow}
        path = f"{self._process(process)}/output"
        with self.client.open("GET", path, query=query) as response:
            while piece := response.read1(256 << 10):
                yield piece

    def events(self, process: str, *, follow: bool = True) -> Iterator[tuple[str, object]]:
        """("stdout" | "stderr" | "pty", bytes), ("lost", dict) and at the end ("exit", view)."""
        from agentd.client.http.sse import events

        path = f"{self._process(process)}/output"
        headers = {"Accept": "text/event-stream"}
        query = {"follow": follow}
        with self.client.open("GET", path, query=query, headers=headers) as response:
            for event in events(response):
                if event.name in ("stdout", "stderr", "pty"):
                    yield event.name, b64decode(event.data)
                elif event.name == "exit":
                    yield "exit", msgspec.json.decode(event.data)
                elif event.name == "lost":
                    yield "lost", msgspec.json.decode(event.data)

    def call(
        self,
        capability: str,
        parameters: Mapping[str, Any],
        emit: "Emit | None",
        bundle: str,
        cancel: int = -1,
    ) -> CallView:
        self._check()
        body = CallBody(
            capability=capability,
            parameters=dict(parameters),
            sandbox=self.id,
            bundle=bundle or None,
        )
        return calls.call(self.client, body, emit, cancel)

    def _check(self) -> None:
        if self._ended:
            raise SandboxError(f"sandbox {self.id} is ended", remediation="create a new sandbox")


def create(
    address: Address,
    *,
    snapshot: "Snapshot | str | os.PathLike[str] | None" = None,
    labels: Mapping[str, str] | None = None,
    ttl: str | float | None = None,
    **options: Unpack[SandboxOptions],
) -> RemoteSandbox:
    """Raises InvalidInput, Refused, SandboxError, Unreachable."""
    id_ = snapshot if snapshot is None or isinstance(snapshot, str) else _snapshot_id(snapshot)
    body = wire.sandbox_body(snapshot=id_, labels=labels, ttl=ttl, **options)
    client = clients.shared(address)
    try:
        return RemoteSandbox(client, client.call("POST", ROOT, body, into=SandboxView, once=True))
    except BaseException:
        clients.release(client)
        raise


def connect(address: Address, id_: str) -> RemoteSandbox:
    """One that is there. Raises NotFound, Unreachable."""
    client = clients.shared(address)
    try:
        return RemoteSandbox(client, HttpSandboxes(client).get(id_))
    except BaseException:
        clients.release(client)
        raise


def _snapshot_id(snapshot: object) -> str:
    found = getattr(snapshot, "id", None)
    if not isinstance(snapshot, RemoteSnapshot) or not isinstance(found, str):
        raise InvalidInput(
            "a snapshot of this process is not the daemon's",
            remediation="take one of a sandbox of the daemon",
        )
    return found
