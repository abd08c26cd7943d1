"""What a door has, once the gatekeeper has told who asks: the caller's Service, and what only the
machinery of a door needs beside it."""

from collections.abc import Callable, Sequence
from typing import Protocol

from agentd.model.answer import Answer, Authorise, Carry, Work
from agentd.model.api import ApprovalView, Repeat
from agentd.model.content import Content
from agentd.model.principal import Principal
from agentd.model.service import Approvals, Events, Files, Sandboxes, Service


class Repeats(Protocol):
    """Requests that are sent again, as ``Idempotency-Key`` has them."""

    def readmit(self, repeat: Repeat, approved: frozenset[str] | None) -> None:
        """Raise what the request would be refused with now; ``approved`` is as of Authorise."""

    async def once(
        self,
        key: str,
        request: bytes,
        work: Work,
        carry: Carry,
        *,
        lasting: bool = True,
        authorise: Authorise | None = None,
    ) -> Answer:
        """Do ``work`` at most once for a key, and answer; belongs to the event loop.

        ``request`` is what it was asked with, and ``carry`` does in a thread what it is given.
        ``authorise`` is asked before a repeat gets an answer: ``readmit``. Not ``lasting`` is what
        a loss of power undoes: it may then be done again. Raises IdempotencyMismatch and others.
        """


class DoorSandboxes(Sandboxes, Protocol):
    def kill_at_once(self, id: str) -> Callable[[], None] | None:
        """Kill without blocking. None where that takes time, or cannot be done: ask ``kill``. Else
        nothing runs in it any more, and what this returns does the rest, in a thread."""


class DoorFiles(Files, Protocol):
    def read(self, sandbox: str, path: str, offset: int = 0, length: int | None = None) -> Content:
        """Read a file, and tell its size and where the pieces lie in it; a negative ``offset`` is
        from its end."""


class DoorApprovals(Approvals, Protocol):
    def page(
        self, limit: int, after: tuple[float, str] | None = None
    ) -> tuple[tuple[ApprovalView, ...], tuple[float, str] | None]:
        """List as ``list`` does, ``limit`` of them at most, from behind a place on; and the place
        behind which there are more, None where there are not."""


class DoorEvents(Events, Protocol):
    def listen(self, notify: Callable[[], object]) -> Callable[[], None]:
        """Call ``notify``, in any thread, after each event that may be new to the caller, until
        what this returns is called. It must not wait for anything."""


class DoorService(Service, Protocol):
    """A Service of one request, which the gatekeeper alone gives out."""

    @property
    def caller(self) -> Principal: ...
    @property
    def sandboxes(self) -> DoorSandboxes: ...
    @property
    def files(self) -> DoorFiles: ...
    @property
    def approvals(self) -> DoorApprovals: ...
    @property
    def events(self) -> DoorEvents: ...
    @property
    def repeats(self) -> Repeats: ...
    def require(self, op: str, scopes: Sequence[str], sandbox: str = "") -> None:
        """Check what a door checks itself, as ``op``. Raises Forbidden, which is told and written
        down as of every operation."""

    def reauthorise(self, scopes: Sequence[str], sandbox: str = "") -> "DoorService":
        """Return the service of who asks by the same credential now, for what goes on for long: a
        key may have been revoked, or the sandbox be another's. Counts as no request. May block
        where ``authenticate`` may. Raises Unauthenticated, Forbidden, NotFound."""
