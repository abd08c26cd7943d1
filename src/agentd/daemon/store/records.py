"""The rows of the store as frozen values. Times are seconds since 1970, UTC."""

from typing import Any

import msgspec

from agentd.model.result import Exit
from agentd.model.spec import SandboxSpec


class StoreRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A row; ``tables`` says which columns identify it."""


class SandboxRecord(StoreRecord, frozen=True, kw_only=True):
    """``save`` is what its wall said of itself: enough to find it again, or to reap it."""

    id: str
    principal: str
    spec: SandboxSpec
    backend: str
    level: str
    state: str
    created: float
    deadline: float | None = None  # when its lease ends
    labels: dict[str, str] = {}
    save: dict[str, Any] = {}
    ended: float | None = None
    name: str = ""  # that its principal gave it
    idle_timeout: float | None = None
    on_idle: str = ""
    paused_by: str = ""  # "idle", where it rests for that; empty where somebody paused it
    snapshot: str = ""  # that it was made of, or what it is a fork of


class ProcessRecord(StoreRecord, frozen=True, kw_only=True):
    """``exit`` is None until it has ended. ``journal`` is the name of its output's journal."""

    id: str
    sandbox: str
    principal: str
    argv: tuple[str, ...]
    state: str
    created: float
    tag: str | None = None
    pid: int | None = None  # in the sandbox
    ended: float | None = None
    exit: Exit | None = None
    journal: str | None = None
    request: str = ""  # that began it


class ApiKeyRecord(StoreRecord, frozen=True, kw_only=True):
    """``hash`` is of the secret, which is not kept."""

    id: str
    principal: str
    hash: bytes
    created: float
    scopes: tuple[str, ...] = ()
    expires: float | None = None
    revoked: float | None = None
    name: str = ""
    created_by: str = ""
    parent: str | None = None
    last_used: float | None = None


class IdempotencyRecord(StoreRecord, frozen=True, kw_only=True):
    """``state``: "started", "done", "dropped" (its answer is not kept) or "interrupted".

    ``expires`` is infinite until its request has ended. ``body`` is sealed.
    """

    principal: str
    key: str
    digest: str  # of the request
    state: str
    created: float
    expires: float
    status: int = 0
    headers: dict[str, str] = {}
    body: bytes = b""
    size: int = 0  # bytes of the answer's body
    approved: str = ""  # the acts that somebody approved, with spaces between them


class NonceRecord(StoreRecord, frozen=True, kw_only=True):
    """A signed request that was used."""

    key: str  # its signer's id
    nonce: str
    issued: float


class ReplayMarkRecord(StoreRecord, frozen=True, kw_only=True):
    """Says what is known beyond the stored nonces; there is one row, with the id "requests".

    ``boot`` is the kernel's boot_id while the daemon runs, and "" after it has ended in order.
    """

    id: str
    floor: float  # requests issued before it are used, or may be
    ceiling: float  # none that was issued from here on has been used
    boot: str


class ApprovalRecord(StoreRecord, frozen=True, kw_only=True):
    """``asked`` is what is to be decided on, as JSON. ``expires`` is when it ends undecided."""

    id: str
    principal: str
    request: str  # its id
    asked: dict[str, Any]
    state: str
    created: float
    expires: float
    decided: float | None = None
    decided_by: str = ""
    note: str = ""
    size: int = 0  # bytes of ``asked``
