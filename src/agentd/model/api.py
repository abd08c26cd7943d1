"""What goes over REST: bodies and views. ``docs/api.md`` has the paths; unknown fields are refused.

Sizes are bytes or "256M", times seconds or "10m". Bytes that are not UTF-8 travel as base64, and
``encoding`` says so. Instants are seconds since 1970.
"""

from typing import Any, cast

import msgspec

from agentd.model import typed
from agentd.model.audit import Record
from agentd.model.decision import Decision
from agentd.model.enforcement import Control
from agentd.model.options import SandboxOptions
from agentd.model.packages import LockedPackage
from agentd.model.result import Cause, SandboxInfo, Timing, Usage
from agentd.model.secret import Secret
from agentd.model.spec import ExecLimits, Pty

Size = str | int
Time = str | float


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class SandboxBody(_Body, frozen=True):
    """``POST /v1/sandboxes``: as the SDK's ``Sandbox.create``. Host paths need the scope mount,
    volumes volumes, the host's network net, rules of one egress."""

    isolation: str | None = None
    backend: str | None = None
    runtime: str | None = None  # the OCI runtime that builds it, of a wall that has several
    image: str = "default"
    template: str | None = None  # of the daemon's configuration: what it says where this does not
    memory: Size | None = None
    cpus: float | None = None
    pids: int | None = None
    disk: Size | None = None
    open_files: int | None = None
    output: Size | None = None
    timeout: Time | None = None
    net_bytes: Size | None = None
    net_rate: Size | None = None
    net: str | tuple[str, ...] = "none"  # or "host", or rules: ["pypi", "api.example.com"]
    secrets: tuple[str | Secret, ...] = ()  # "TOKEN@api.example.com", or with a value
    user: str | int | None = None
    writable: bool = False  # all of the root, and not some places only
    env: dict[str, str] = {}
    workspace: str | None = None
    mounts: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()  # "NAME:/data[:ro|rw]"
    packages: str | tuple[str, ...] = ()  # of the index: ["numpy", "pandas>=2"]
    labels: dict[str, str] = {}
    ttl: Time | None = None
    snapshot: str | None = None  # a snapshot's id
    name: str | None = None  # of one's own, which no other of one's sandboxes has
    wait: Time | None = None  # for room in one's quota, at most so long; else 429
    idle_timeout: Time | None = None  # without use; then it is paused or ended, as on_idle says
    on_idle: str | None = None  # "pause", which is usual: the next request resumes it; or "end"

    def options(self) -> SandboxOptions:
        """Return what is asked of the sandbox itself, not of a daemon, a snapshot, a template."""
        names = SandboxOptions.__annotations__
        return cast("SandboxOptions", {name: getattr(self, name) for name in names})


class ExecBody(_Body, frozen=True):
    """``POST .../exec``; a plain string as ``cmd`` is run by ``sh -c``."""

    cmd: str | tuple[str, ...]
    cwd: str | None = None
    env: dict[str, str] = {}
    timeout: Time | None = None
    limits: ExecLimits | None = None
    stdin: str | None = None  # what it reads, then its end
    stdin_encoding: str = "utf-8"  # or "base64"
    stdin_open: bool = False  # a stream, fed by .../stdin or the WebSocket
    pty: Pty | None = None
    tag: str | None = None
    wait: bool = True


class RunBody(_Body, frozen=True):
    """``POST /v1/run``: a sandbox, one command in it, and its end."""

    exec: ExecBody
    sandbox: SandboxBody = SandboxBody()


class CallBody(_Body, frozen=True):
    """``POST /v1/call``: a capability, by name; in the sandbox with that id, or in one that is made
    as ``create`` says and ends with the call. ``bundle``: the policy that must be in force, by its
    digest. ``keep``: its commands stay listed, with their output, as those of exec do.
    ``signature`` is what ``agentd sign`` adds to all of the rest."""

    capability: str
    parameters: dict[str, Any] = {}
    sandbox: str | None = None
    create: SandboxBody = SandboxBody()
    bundle: str | None = None
    keep: bool = False
    signature: dict[str, Any] | None = None


class LabelsBody(_Body, frozen=True):
    """``PATCH /v1/sandboxes/{id}``: what is named is set, or with null taken away."""

    labels: dict[str, str | None]


class RenewBody(_Body, frozen=True):
    ttl: Time


class ForkBody(_Body, frozen=True):
    count: int = 1


class CommitBody(_Body, frozen=True):
    name: str


class SignalBody(_Body, frozen=True):
    signal: int = 15
    target: str = "group"  # or "sandbox"


class MkdirBody(_Body, frozen=True):
    path: str
    mode: int = 0o755
    parents: bool = False


class MoveBody(_Body, frozen=True):
    path: str
    to: str


class VolumeBody(_Body, frozen=True):
    """``POST /v1/volumes``, and ``.../{name}/snapshot``: of the new one.

    ``size`` bounds what is in it, where agentd is root; else it is refused."""

    name: str
    size: Size | None = None


class KeyBody(_Body, frozen=True):
    """``principal``: as whom it acts, an admin's choice; else it is ``name`` for an admin's keys,
    and oneself for all others."""

    name: str
    scopes: tuple[str, ...]
    ttl: Time | None = None
    principal: str | None = None


class DecideBody(_Body, frozen=True):
    allow: bool
    note: str = ""


class SandboxView(msgspec.Struct, frozen=True):
    id: str
    state: str
    backend: str
    level: str
    image: str
    labels: dict[str, str]
    principal: str
    created: float
    deadline: float | None
    workspace: str
    enforcement: dict[str, Control]
    usage: dict[str, int] = {}
    abilities: tuple[str, ...] = ()
    name: str = ""
    idle_timeout: float | None = None  # seconds
    on_idle: str = ""
    paused_by: str = ""  # "idle": the next request resumes it; empty where a caller paused it
    command: tuple[str, ...] = ()  # what its image runs where nobody says what
    fidelity: str = ""  # what its snapshots keep: "memory" or "files"
    image_digest: str = ""  # of its OCI image, as it was when the sandbox was made
    net: str = "none"  # "none", "host" or "restricted"
    egress: tuple[str, ...] = ()  # the rules of a network that is restricted
    template: str = ""  # that it was made of
    packages: tuple[LockedPackage, ...] = ()  # what those that were asked for became


class SandboxPage(msgspec.Struct, frozen=True):
    sandboxes: tuple[SandboxView, ...]
    next: str | None = None  # the cursor of the next page


class ResultView(msgspec.Struct, frozen=True):
    """How a command ended, as ``agentd run --json`` prints it."""

    request_id: str
    status: str
    exit_code: int | None
    signal: int | None
    cause: Cause
    stdout: str
    stderr: str
    encoding: str
    truncated: bool
    usage: Usage
    timing: Timing
    sandbox: SandboxInfo
    enforcement: dict[str, Control]
    process: str | None = None  # its id, for the journal
    receipt: str = ""  # its id, for GET /v1/receipts/{id}


class CallView(msgspec.Struct, frozen=True):
    """What came of a call: ``value`` is the capability's own, the rest the same for all.

    ``status`` is "ok", or "failed" where a command did it and did not succeed. What did not run is
    an error and no CallView. ``commands`` are the ids of those that were asked to stay.
    """

    request_id: str
    capability: str
    status: str
    value: dict[str, Any]
    cause: Cause
    decision: Decision
    usage: Usage
    timing: Timing
    sandbox: SandboxInfo | None
    enforcement: dict[str, Control]
    receipt: str
    commands: tuple[str, ...] = ()


class CapabilityView(msgspec.Struct, frozen=True):
    """``blocker`` says why it cannot be used; then it is all but the name."""

    name: str
    summary: str = ""
    scope: str = ""  # that a call of it needs
    needs: dict[str, Any] = {}
    parameters: dict[str, Any] = {}  # their JSON Schema
    examples: tuple[dict[str, Any], ...] = ()
    blocker: str = ""


class ProcessView(msgspec.Struct, frozen=True):
    """Bytes of each stream so far in ``output``, what is gone of them in ``lost``; of more than 4
    KiB of words ``argv`` has the first, and ``argv_cut`` counts the bytes of the others."""

    id: str
    sandbox: str
    argv: tuple[str, ...]
    tag: str | None
    pid: int | None
    state: str  # "running" or "ended"
    started: float
    output: dict[str, int]
    lost: dict[str, int] = {}
    result: ResultView | None = None
    argv_cut: int = 0


class SnapshotView(msgspec.Struct, frozen=True):
    id: str
    sandbox: str
    fidelity: str
    created: float
    bytes: int


class VolumeView(msgspec.Struct, frozen=True):
    """``sandboxes`` have it now; ``size`` is the bound of its bytes, None without one."""

    name: str
    principal: str
    created: float
    size: int | None = None
    sandboxes: tuple[str, ...] = ()


class EntryView(msgspec.Struct, frozen=True):
    name: str
    type: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime: float
    target: str | None = None


class ChangeView(msgspec.Struct, frozen=True):
    """A change in a folder that is watched."""

    kind: str  # "create", "modify", "delete", "move" or "overflow"
    path: str


class KeyView(msgspec.Struct, frozen=True):
    """``secret`` is there once, in the answer to its creation. ``principal`` is as whom it acts,
    ``parent`` the key that it was made with; ``last_used`` is known since the daemon came up."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created: float
    expires: float | None
    revoked: bool
    secret: str | None = None
    principal: str = ""
    created_by: str = ""
    parent: str | None = None
    last_used: float | None = None


class ApprovalView(msgspec.Struct, frozen=True):
    """A request that waits, or waited, for somebody to allow it. ``note`` is of who decided, or
    says why nobody did."""

    id: str
    state: str  # "pending", "approved", "denied", "expired" or "withdrawn"
    principal: str  # who asked
    request: str  # its id
    asked: dict[str, Any]
    created: float
    expires: float
    decided: float | None = None
    decided_by: str = ""
    note: str = ""


class AuditHead(msgspec.Struct, frozen=True):
    """``head`` is the last record's place, SEQ:HASH, as ``seq`` and ``hash`` as well; ``first`` the
    oldest record that is kept. ``damage`` says what is wrong with what was written."""

    head: str
    first: int
    damage: str = ""
    seq: int = 0
    hash: str = ""


class AuditPage(msgspec.Struct, frozen=True):
    """Records as they stand in the log, byte for byte, so that their hashes can be checked;
    ``next`` is the number of the first that is not here, if there is one."""

    lines: tuple[msgspec.Raw, ...] = msgspec.field(name="records")
    next: int | None = None

    @property
    def records(self) -> tuple[Record, ...]:
        """What the lines say."""
        return tuple(typed.decoder(Record).decode(line) for line in self.lines)


class BackendView(msgspec.Struct, frozen=True):
    name: str
    level: str
    usable: bool
    blockers: tuple[dict[str, str], ...]
    notes: tuple[str, ...]
    images: bool = False
    abilities: tuple[str, ...] = ()
    fidelity: str = ""  # what snapshots of its sandboxes keep: "memory" or "files"


class ErrorView(msgspec.Struct, frozen=True):
    code: str
    message: str
    cause: str = ""
    remediation: str = ""


class Stats(msgspec.Struct, frozen=True):
    sandboxes: int
    processes: int
    pool: dict[str, int]
    queue: int
    totals: dict[str, Any]


class Repeat(msgspec.Struct, frozen=True):
    """A request that an Idempotency-Key stands for. ``body`` None is that of a file's upload."""

    body: SandboxBody | ExecBody | RunBody | CallBody | None
    sandbox: str = ""
    path: str = ""  # of the file
    to: str = ""  # where it is moved to
    raw: bytes = b""  # the body as it came
