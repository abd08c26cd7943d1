"""What every way in asks of the daemon. Blocking and thread-safe, unless it says otherwise.

Each method checks the principal's scope and that the sandbox is its own, and raises errors of
``model.errors``: Forbidden, NotFound, Conflict, Full, InvalidInput, Refused, SandboxError, ...
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from agentd.model.answer import Answer
from agentd.model.api import (
    ApprovalView,
    AuditHead,
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
from agentd.model.port import Port
from agentd.model.principal import Principal

T = TypeVar("T")


class Output(Protocol):
    """One follower of a process's output, at its own place."""

    def read(self, limit: int) -> "Sequence[OutputEvent]":
        """What is there now, about ``limit`` bytes at most; never blocks. After the end: an event
        of the kind "exit", then nothing."""

    def close(self) -> None: ...


class OutputEvent(Protocol):
    """``kind``: "data", "lost" or "exit"."""

    @property
    def kind(self) -> str: ...
    @property
    def stream(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def data(self) -> bytes: ...
    @property
    def length(self) -> int:
        """Of data, or of what is lost."""

    @property
    def result(self) -> ResultView | None: ...


class Service(Protocol):
    # sandboxes
    def create(self, who: Principal, body: SandboxBody) -> SandboxView: ...
    def get_or_create(self, who: Principal, name: str, body: SandboxBody) -> SandboxView: ...
    def relabel(self, who: Principal, id_: str, body: LabelsBody) -> SandboxView: ...
    def list(
        self,
        who: Principal,
        labels: Mapping[str, str],
        limit: int,
        cursor: str,
        state: str = "",
    ) -> SandboxPage: ...
    def get(self, who: Principal, id_: str) -> SandboxView: ...
    def delete(self, who: Principal, id_: str) -> None: ...
    def delete_at_once(self, who: Principal, id_: str) -> Callable[[], None] | None:
        """Never blocks. None where it takes time, or cannot be done: ask ``delete``. Else nothing
        runs in it any more, and what this returns does the rest, in a thread."""

    def renew(self, who: Principal, id_: str, ttl: str | float) -> SandboxView: ...
    def pause(self, who: Principal, id_: str) -> SandboxView: ...
    def resume(self, who: Principal, id_: str) -> SandboxView: ...
    def snapshot(self, who: Principal, id_: str) -> SnapshotView: ...
    def get_snapshot(self, who: Principal, snapshot: str) -> SnapshotView: ...
    def snapshots(self, who: Principal) -> Sequence[SnapshotView]: ...
    def delete_snapshot(self, who: Principal, snapshot: str) -> None: ...
    def fork(self, who: Principal, id_: str, count: int) -> Sequence[SandboxView]: ...
    def changes(self, who: Principal, id_: str) -> Sequence[str]: ...
    def apply(self, who: Principal, id_: str) -> None: ...

    # commands
    def exec(self, who: Principal, id_: str, body: ExecBody) -> ResultView:
        """To its end; its output is in the answer, and in the journal."""

    def start(self, who: Principal, id_: str, body: ExecBody) -> ProcessView: ...
    def run(self, who: Principal, body: RunBody) -> ResultView: ...
    def processes(self, who: Principal, id_: str) -> Sequence[ProcessView]: ...
    def process(self, who: Principal, id_: str, process: str) -> ProcessView: ...
    def follow(
        self,
        who: Principal,
        id_: str,
        process: str,
        cursors: Mapping[str, int],
        notify: Callable[[], None],
        streams: Sequence[str] = ("stdout", "stderr", "pty"),
    ) -> Output:
        """``notify`` is called from any thread when ``read`` may have more."""

    def stdin(self, who: Principal, id_: str, process: str, data: bytes, *, eof: bool) -> None: ...
    def signal(self, who: Principal, id_: str, process: str, signal: int, target: str) -> None: ...
    def resize(self, who: Principal, id_: str, process: str, rows: int, cols: int) -> None: ...

    # capabilities
    def capabilities(self, who: Principal) -> Sequence[CapabilityView]: ...
    def call(
        self,
        who: Principal,
        body: CallBody,
        raw: bytes,
        *,
        emit: Callable[[str, bytes], None] | None = None,
        cancel: int = -1,
    ) -> CallView:
        """``raw`` is the body as it came, which is what a signature is of; ``emit`` gets what the
        call has before its end; ``cancel`` is a descriptor that ends it once it is readable."""

    def receipt(self, who: Principal, id_: str) -> bytes:
        """Its DSSE envelope. Raises NotFound, also for another's."""

    def receipt_key(self, who: Principal) -> str: ...

    # files
    def read_file(
        self, who: Principal, id_: str, path: str, offset: int = 0, length: int | None = None
    ) -> Iterator[bytes]: ...
    def write_file(
        self,
        who: Principal,
        id_: str,
        path: str,
        data: Iterable[bytes],
        *,
        mode: int = 0o644,
        parents: bool = False,
    ) -> int: ...
    def list_files(self, who: Principal, id_: str, path: str) -> Sequence[EntryView]: ...
    def stat_file(self, who: Principal, id_: str, path: str) -> EntryView: ...
    def mkdir(self, who: Principal, id_: str, body: MkdirBody) -> None: ...
    def move(self, who: Principal, id_: str, body: MoveBody) -> None: ...
    def remove(self, who: Principal, id_: str, path: str, *, recursive: bool) -> None: ...
    def watch(
        self, who: Principal, id_: str, path: str, *, recursive: bool, wake: int
    ) -> Iterator[Mapping[str, str]]:
        """``{"kind", "path"}`` each, until the descriptor ``wake`` becomes readable. What is wrong
        with the request is raised by the call itself."""

    def read_tar(self, who: Principal, id_: str, path: str) -> Iterator[bytes]: ...
    def write_tar(
        self,
        who: Principal,
        id_: str,
        path: str,
        data: Iterable[bytes],
        *,
        whole: bool = False,
        replace: bool = False,
    ) -> None: ...

    # ports
    def tunnel(self, who: Principal, id_: str, port: int) -> Port: ...

    # keys
    def create_key(self, who: Principal, body: KeyBody) -> KeyView: ...
    def key(self, who: Principal, key: str) -> KeyView: ...
    def keys(self, who: Principal) -> Sequence[KeyView]: ...
    def revoke_key(self, who: Principal, key: str) -> None: ...

    # approvals
    def approvals(self, who: Principal) -> Sequence[ApprovalView]: ...
    def approval(self, who: Principal, id_: str) -> ApprovalView: ...
    def decide_approval(self, who: Principal, id_: str, body: DecideBody) -> ApprovalView: ...
    def withdraw_approval(self, who: Principal, id_: str) -> ApprovalView: ...

    # the daemon itself
    def audit_head(self, who: Principal) -> AuditHead: ...
    def audit_records(self, who: Principal, first: int, limit: int) -> object:
        """An AuditPage, its records byte for byte as they stand in the log."""

    def version(self) -> Mapping[str, str]: ...
    def backends(self, who: Principal) -> Sequence[BackendView]: ...
    def stats(self, who: Principal) -> Stats: ...
    def ready(self) -> str:
        """Why it is not ready, or ""."""

    def readmit(self, who: Principal, repeat: Repeat, approved: frozenset[str] | None) -> None:
        """Raises what the request would be refused with now; ``approved`` is as of Authorise."""

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
        """``Idempotency-Key``: ``work`` runs at most once for a key; ``request`` is what it was
        asked with, and ``carry`` does in a thread what it is given. ``authorise`` is asked before
        a repeat gets an answer: ``readmit``. Not ``lasting`` is what a loss
        of power undoes: it may then be done again. Raises IdempotencyMismatch and others."""
