"""What one caller may ask of agentd, by nouns: the same words at every door.

A ``Service`` is bound to its caller: who asks was settled before it was given out, and is no
argument of any method. Each method answers, or raises an error of ``model.errors``; what is
another's does not exist for the caller (NotFound), and what is asked without the scope is
Forbidden. Ids are opaque text; instants are seconds since 1970, times seconds or "10m", sizes bytes
or "256M"; paths are absolute, inside. Every method blocks and is thread-safe. Lists are whole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from agentd.model.api import (
    ApprovalView,
    AuditHead,
    AuditPage,
    BackendView,
    CallView,
    CapabilityView,
    ExecBody,
    KeyView,
    ProcessView,
    ResultView,
    RunBody,
    SandboxBody,
    SandboxView,
    SnapshotView,
    Stats,
    VolumeView,
)
from agentd.model.events import EventPage
from agentd.model.files import Files as Files  # noqa: PLC0414
from agentd.model.image import ImageView
from agentd.model.kept_secret import Secrets as Secrets  # noqa: PLC0414
from agentd.model.network import Network as Network  # noqa: PLC0414
from agentd.model.output import STREAMS, Output
from agentd.model.port import Port, PortLink
from agentd.model.template import TemplateView

Emit = Callable[[str, bytes], None]
_AS_USUAL = SandboxBody()


class Sandboxes(Protocol):
    def create(self, body: SandboxBody = _AS_USUAL) -> SandboxView:
        """Make one that is ready. Raises Refused, Full, QuotaExceeded, SandboxError, and Conflict
        where one has a sandbox of that ``name``."""

    def get_or_create(self, name: str, body: SandboxBody = _AS_USUAL) -> SandboxView:
        """Return the sandbox that one has given this name, as it is; make it if there is none.
        Raises as ``create`` does."""

    def list(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        state: str | None = None,
        after: str = "",
        limit: int | None = None,
    ) -> tuple[SandboxView, ...]:
        """List the sandboxes that have all of ``labels`` and, where one is given, that state
        ("ready", "paused", ...), in the order of their ids: from behind the id ``after`` on, and
        ``limit`` of them at most."""

    def get(self, id: str) -> SandboxView:
        """Return one as it is now, with what it uses. Raises NotFound."""

    def relabel(self, id: str, labels: Mapping[str, str | None]) -> SandboxView:
        """Set labels; those that are None are taken away, others stay. Raises NotFound."""

    def renew(self, id: str, ttl: str | float) -> SandboxView:
        """Set the time until it is ended unless it is renewed again. Raises NotFound."""

    def pause(self, id: str) -> SandboxView:
        """Stop all that runs in it. Raises NotFound, Unsupported."""

    def resume(self, id: str) -> SandboxView:
        """Let what ``pause`` stopped go on. Raises NotFound, Conflict."""

    def kill(self, id: str) -> None:
        """End everything in it, and it. Raises NotFound."""

    def snapshot(self, id: str) -> SnapshotView:
        """Keep its state, to create others from. Raises NotFound, Conflict, Unsupported."""

    def fork(self, id: str, count: int = 1) -> tuple[SandboxView, ...]:
        """Make so many copies of it as it is now, all of them or none. Raises NotFound, Conflict,
        Unsupported, QuotaExceeded."""

    def commit(self, id: str, name: str) -> ImageView:
        """Name an OCI image of what it is now: its image, and its changes as a layer. One of that
        name is replaced. Raises Forbidden but for an admin, NotFound, Conflict, Refused."""

    def changes(self, id: str) -> tuple[str, ...]:
        """List what it has changed in its copy of the workspace: "A path", "M path", "D path".
        Raises NotFound, Unsupported."""

    def apply(self, id: str) -> None:
        """Change the workspace itself as the copy was changed. Raises NotFound, Unsupported."""


class Commands(Protocol):
    """The commands of a sandbox, those that ended too, as long as it lives."""

    def exec(self, sandbox: str, body: ExecBody) -> ResultView:
        """Run one to its end. What of its output the answer has no room for (``truncated``)
        ``output`` has. Raises NotFound, Conflict, and what refuses it."""

    def start(self, sandbox: str, body: ExecBody) -> ProcessView:
        """Start one, which goes on by itself. Raises as ``exec`` does."""

    def run(self, body: RunBody) -> ResultView:
        """Make a sandbox, run one command in it, and end it. Raises as ``exec`` and ``create``."""

    def list(self, sandbox: str) -> tuple[ProcessView, ...]:
        """List them. Raises NotFound."""

    def get(self, sandbox: str, process: str) -> ProcessView:
        """Return one, by its id or tag, with its result once it has ended. Raises NotFound."""

    def output(self, sandbox: str, process: str, stream: str = "stdout", start: int = 0) -> bytes:
        """Return what is kept of a stream ("stdout", "stderr" or "pty") from that byte on.

        A command that runs may write more: ``follow`` has it as it comes. Raises NotFound, TooLarge
        for over 64 MiB, and Conflict where bytes behind ``start`` are gone: ``get`` says how many,
        in ``lost``.
        """

    def follow(
        self,
        sandbox: str,
        process: str,
        cursors: Mapping[str, int],
        notify: Callable[[], None],
        streams: Sequence[str] = STREAMS,
    ) -> Output:
        """Follow what it writes, of each stream from its cursor on (0 where it has none).

        ``notify`` is called from any thread when ``read`` may have more, and must not wait for
        anything. Raises NotFound, InvalidInput.
        """

    def write(self, sandbox: str, process: str, data: bytes, *, eof: bool = False) -> None:
        """Give it what it reads next; ``eof``: nothing follows. Waits until it has been taken.
        Raises NotFound, and Conflict once it reads no more."""

    def signal(self, sandbox: str, process: str, signal: int = 15, target: str = "group") -> None:
        """Send a signal to its process group, or to all of its "sandbox". Raises NotFound, and
        Conflict once it has ended."""

    def resize(self, sandbox: str, process: str, rows: int, cols: int) -> None:
        """Change the size of its terminal. Raises NotFound, Conflict."""


class Ports(Protocol):
    def open(self, sandbox: str, port: int) -> Port:
        """Connect to a TCP port inside. Raises NotFound, and OperationFailed where nothing
        listens."""

    def link(self, sandbox: str, port: int, *, ttl: str | float = "1h") -> PortLink:
        """Return the address of a server inside for a browser, on a host of its own. Who has it
        needs nothing else, for so long as the caller might connect there. Raises NotFound, and
        Unsupported where no browser could reach the daemon."""


class Snapshots(Protocol):
    def list(self) -> tuple[SnapshotView, ...]:
        """List them."""

    def get(self, id: str) -> SnapshotView:
        """Return one. Raises NotFound."""

    def export(self, id: str) -> Iterator[bytes]:
        """Return an archive of an OCI image of what it holds: the image that it was taken of, with
        what was changed as one more layer.

        Raises NotFound, Forbidden without the scope admin, and Refused for one of memory.
        """

    def delete(self, id: str) -> None:
        """Delete one; sandboxes that were made of it stay. Raises NotFound."""


class Volumes(Protocol):
    """Folders of one's own that outlive sandboxes, which have them by ``SandboxBody.volumes``."""

    def create(self, name: str, size: str | int | None = None) -> VolumeView:
        """Make an empty one, which holds at most ``size`` bytes. Raises InvalidInput, Refused where
        no size can be enforced, Conflict where one has a volume of that name, QuotaExceeded."""

    def list(self) -> tuple[VolumeView, ...]:
        """List them, by name."""

    def get(self, name: str) -> VolumeView:
        """Return one, with the sandboxes that have it now. Raises NotFound."""

    def snapshot(self, name: str, new: str) -> VolumeView:
        """Make another that has what this one has now. Raises NotFound, and Conflict while a
        sandbox may write to it, or where one has a volume called ``new``."""

    def delete(self, name: str) -> None:
        """Delete one and all that is in it. Raises NotFound, and Conflict while a sandbox has
        it."""


class Capabilities(Protocol):
    def list(self) -> tuple[CapabilityView, ...]:
        """List what can be called by name, and why some of it cannot be used here."""

    def call(
        self,
        capability: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        sandbox: str | None = None,
        create: SandboxBody = _AS_USUAL,
        bundle: str | None = None,
        keep: bool = False,
        emit: Emit | None = None,
        cancel: int = -1,
    ) -> CallView:
        """Call one in that sandbox, or in one that is made as ``create`` says and ends with it.

        ``emit(kind, data)`` gets what it has before its end; ``bundle`` is the digest of the policy
        that must be in force; with ``keep`` its commands stay listed, as those of ``exec``, and
        their ids are in ``commands``; ``cancel`` is a descriptor that ends it once it is readable.
        Raises PolicyDenied, Undecided, NotFound, CallFailed.
        """

    def request(self, body: bytes, *, emit: Emit | None = None, cancel: int = -1) -> CallView:
        """Call as a CallBody in JSON says, which may be signed: the signature is of these very
        bytes' members. Raises as ``call`` does, and Unauthenticated."""


class Receipts(Protocol):
    def get(self, id: str) -> bytes:
        """Return a receipt, a DSSE envelope, by its id, which a Result has. Raises NotFound."""

    def key(self) -> str:
        """Return the public key that receipts verify with, as PEM."""


class Keys(Protocol):
    def create(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        ttl: str | float | None = None,
        principal: str | None = None,
    ) -> KeyView:
        """Make an API key, of no more than one's own scopes; its ``secret`` is told this once.

        ``principal``: as whom it acts, an admin's choice. Raises Forbidden, InvalidInput.
        """

    def list(self) -> tuple[KeyView, ...]:
        """List them, without their secrets."""

    def get(self, id: str) -> KeyView:
        """Return one, without its secret. Raises NotFound."""

    def revoke(self, id: str) -> None:
        """Let it, and the keys made with it, do nothing any more. Raises NotFound."""


class Approvals(Protocol):
    """Requests that wait for somebody to allow them."""

    def list(self) -> tuple[ApprovalView, ...]:
        """List one's own, or with the scope approve everybody's."""

    def get(self, id: str) -> ApprovalView:
        """Return one. Raises NotFound."""

    def decide(self, id: str, *, allow: bool, note: str = "") -> ApprovalView:
        """Let it go on, or refuse it. Raises Forbidden for one's own, Conflict once decided."""

    def withdraw(self, id: str) -> ApprovalView:
        """Take back one's own. Raises NotFound, Conflict."""


class Audit(Protocol):
    """The audit log, for who has the scope admin."""

    def head(self) -> AuditHead:
        """Return the last record's place."""

    def records(self, start: int = 1, limit: int = 1000) -> AuditPage:
        """Return records from that number on, up to 1000 and 4 MiB; ``next`` is where to go on."""


class Events(Protocol):
    """What happens to one's sandboxes; to everybody's for who has the scope admin."""

    def read(self, after: str = "", *, limit: int = 100, wait: str | float = 0) -> EventPage:
        """Return events behind the id ``after``, the oldest first: without it the oldest that are
        kept. Where there is none yet, wait for one, for a minute at most. Raises InvalidInput."""


class Machine(Protocol):
    def version(self) -> Mapping[str, str]:
        """Return the versions that the daemon tells, "agentd" among them."""

    def backends(self) -> tuple[BackendView, ...]:
        """List the walls, and what is in the way of those that cannot be used."""

    def templates(self) -> tuple[TemplateView, ...]:
        """List what the configuration says sandboxes may be made as."""

    def stats(self) -> Stats:
        """Return how much is in use."""


class Service(Protocol):
    @property
    def sandboxes(self) -> Sandboxes: ...
    @property
    def commands(self) -> Commands: ...
    @property
    def files(self) -> Files: ...
    @property
    def ports(self) -> Ports: ...
    @property
    def network(self) -> Network: ...
    @property
    def snapshots(self) -> Snapshots: ...
    @property
    def volumes(self) -> Volumes: ...
    @property
    def secrets(self) -> Secrets: ...
    @property
    def capabilities(self) -> Capabilities: ...
    @property
    def receipts(self) -> Receipts: ...
    @property
    def keys(self) -> Keys: ...
    @property
    def approvals(self) -> Approvals: ...
    @property
    def audit(self) -> Audit: ...
    @property
    def events(self) -> Events: ...
    @property
    def machine(self) -> Machine: ...
