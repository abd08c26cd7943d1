"""A daemon in memory, and its gatekeeper."""

import asyncio
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from tests.unit.ingest.fake_sandbox import FakeProcess as FakeProcess  # noqa: PLC0414
from tests.unit.ingest.fake_service import FakeService

from agentd.daemon.events import EventFeed
from agentd.daemon.service.links import Links
from agentd.model.api import ApprovalView, CallBody, CallView, KeyView, SnapshotView, VolumeView
from agentd.model.capability import CallFailed
from agentd.model.credential import Credential
from agentd.model.decision import Decision
from agentd.model.errors import NotFound, QuotaExceeded, Unauthenticated
from agentd.model.principal import SCOPES, Principal
from agentd.model.result import Cause, CauseCode, Timing, Usage

if TYPE_CHECKING:
    from tests.unit.ingest.fake_sandbox import FakeSandbox

    from agentd.model.answer import Answer
    from agentd.model.kept_secret import SecretView

_ALL = frozenset(SCOPES) - {"admin"}
KEYS = {
    "agd_alice": Principal("alice", _ALL, "key"),
    "agd_bob": Principal("bob", _ALL, "key"),
    "agd_reader": Principal("alice", frozenset(("read",)), "key"),
}


class FakeDaemon:
    """A gatekeeper, and what it gives out works on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.api_keys: dict[str, KeyView] = {}
        self.kept: dict[str, SnapshotView] = {}
        self.volumes: dict[str, VolumeView] = {}
        self.secrets: dict[str, SecretView] = {}
        self.asked: dict[str, ApprovalView] = {}
        self.count = 0
        self.calls: list[str] = []
        self.events = EventFeed()
        self.links = Links()
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

    def authenticate(self, credential: Credential) -> FakeService:
        return FakeService(self, self._who(credential), lambda: self._who(credential))

    def follow(self, token: str, sandbox: str, port: int) -> FakeService:
        again = self.links.maker(token, sandbox, port)
        return FakeService(self, again(), again)

    def _who(self, credential: Credential) -> Principal:
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

    def number(self) -> int:
        with self.lock:
            self.count += 1
            return self.count

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


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for it; an AssertionError if it never comes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
