"""What one caller may ask of agentd, by nouns: the same words at every door.

A ``Service`` is bound to its caller: who asks was settled before it was given out, and is no
argument of any method. Each method answers, or raises an error of ``model.errors``; what is
another's does not exist for the caller (NotFound), and what is asked without the scope is
Forbidden. Ids are opaque text; instants are seconds since 1970, times seconds or "10m", sizes bytes
or "256M". Every method blocks and is thread-safe. Lists are whole: every page of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from agentd.model.api import (
    ApprovalView,
    AuditHead,
    AuditPage,
    BackendView,
    CallView,
    CapabilityView,
    KeyView,
    ProcessView,
    SandboxView,
    SnapshotView,
    Stats,
)

Emit = Callable[[str, bytes], None]


class Sandboxes(Protocol):
    def list(
        self, *, labels: Mapping[str, str] | None = None, state: str | None = None
    ) -> tuple[SandboxView, ...]:
        """List the sandboxes that have all of ``labels`` and, where one is given, that state
        ("ready", "paused", ...), in the order of their ids."""
        ...

    def get(self, id: str) -> SandboxView:
        """Return one as it is now, with what it uses. Raises NotFound."""
        ...

    def relabel(self, id: str, labels: Mapping[str, str | None]) -> SandboxView:
        """Set labels; those that are None are taken away, others stay. Raises NotFound."""
        ...

    def renew(self, id: str, ttl: str | float) -> SandboxView:
        """Set the time until it is ended unless it is renewed again. Raises NotFound."""
        ...

    def pause(self, id: str) -> SandboxView:
        """Stop all that runs in it. Raises NotFound, Unsupported."""
        ...

    def resume(self, id: str) -> SandboxView:
        """Let what ``pause`` stopped go on. Raises NotFound, Conflict."""
        ...

    def kill(self, id: str) -> None:
        """End everything in it, and it. Raises NotFound."""
        ...


class Commands(Protocol):
    """The commands of a sandbox, those that ended too, as long as it lives."""

    def list(self, sandbox: str) -> tuple[ProcessView, ...]:
        """List them. Raises NotFound."""
        ...

    def get(self, sandbox: str, process: str) -> ProcessView:
        """Return one, by its id or tag, with its result once it has ended. Raises NotFound."""
        ...

    def output(self, sandbox: str, process: str, stream: str = "stdout", start: int = 0) -> bytes:
        """Return what is kept of a stream ("stdout", "stderr" or "pty") from that byte on.

        A command that runs may write more: ``Sandbox.attach`` follows it. Raises NotFound, and
        Conflict where bytes behind ``start`` are gone: ``get`` says how many, in ``lost``.
        """
        ...

    def signal(self, sandbox: str, process: str, signal: int = 15, target: str = "group") -> None:
        """Send a signal to its process group, or to all of its "sandbox". Raises NotFound, and
        Conflict once it has ended."""
        ...


class Snapshots(Protocol):
    def list(self) -> tuple[SnapshotView, ...]:
        """List them."""
        ...

    def get(self, id: str) -> SnapshotView:
        """Return one. Raises NotFound."""
        ...

    def delete(self, id: str) -> None:
        """Delete one; sandboxes that were made of it stay. Raises NotFound."""
        ...


class Capabilities(Protocol):
    def list(self) -> tuple[CapabilityView, ...]:
        """List what can be called by name, and why some of it cannot be used here."""
        ...

    def call(
        self,
        capability: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        sandbox: str | None = None,
        bundle: str | None = None,
        emit: Emit | None = None,
    ) -> CallView:
        """Call one in that sandbox, or in one that is made for the call and ends with it.

        ``emit(kind, data)`` gets what it has before its end; ``bundle`` is the digest of the policy
        that must be in force. Raises PolicyDenied, Undecided, NotFound, CallFailed.
        """
        ...


class Receipts(Protocol):
    def get(self, id: str) -> bytes:
        """Return a receipt, a DSSE envelope, by its id, which a Result has. Raises NotFound."""
        ...

    def key(self) -> str:
        """Return the public key that receipts verify with, as PEM."""
        ...


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
        ...

    def list(self) -> tuple[KeyView, ...]:
        """List them, without their secrets."""
        ...

    def get(self, id: str) -> KeyView:
        """Return one, without its secret. Raises NotFound."""
        ...

    def revoke(self, id: str) -> None:
        """Let it, and the keys made with it, do nothing any more. Raises NotFound."""
        ...


class Approvals(Protocol):
    """Requests that wait for somebody to allow them."""

    def list(self) -> tuple[ApprovalView, ...]:
        """List one's own, or with the scope approve everybody's."""
        ...

    def get(self, id: str) -> ApprovalView:
        """Return one. Raises NotFound."""
        ...

    def decide(self, id: str, *, allow: bool, note: str = "") -> ApprovalView:
        """Let it go on, or refuse it. Raises Forbidden for one's own, Conflict once decided."""
        ...

    def withdraw(self, id: str) -> ApprovalView:
        """Take back one's own. Raises NotFound, Conflict."""
        ...


class Audit(Protocol):
    """The audit log, for who has the scope admin."""

    def head(self) -> AuditHead:
        """Return the last record's place."""
        ...

    def records(self, start: int = 1, limit: int = 1000) -> AuditPage:
        """Return records from that number on, up to 1000 and 4 MiB; ``next`` is where to go on."""
        ...


class Machine(Protocol):
    def version(self) -> Mapping[str, str]:
        """Return the versions that the daemon tells, "agentd" among them."""
        ...

    def backends(self) -> tuple[BackendView, ...]:
        """List the walls, and what is in the way of those that cannot be used."""
        ...

    def stats(self) -> Stats:
        """Return how much is in use."""
        ...


class Service(Protocol):
    @property
    def sandboxes(self) -> Sandboxes: ...
    @property
    def commands(self) -> Commands: ...
    @property
    def snapshots(self) -> Snapshots: ...
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
    def machine(self) -> Machine: ...
