"""Every setting of the daemon, with what holds where nothing is said.

``None`` is written "none" in a file and means no bound. ``RELOADED`` names the sections that a
running daemon takes over; the rest holds until it starts again.
"""

from typing import Literal

import msgspec

from agentd.daemon.config.values import (
    AddressAndPort,
    Algorithm,
    Bundle,
    DoorName,
    Duration,
    FilePath,
    Grant,
    HostName,
    IndexUrl,
    Isolation,
    ListenAddress,
    Mode,
    Name,
    PortsUrl,
    Scope,
    Sink,
    Size,
    Uid,
)
from agentd.model.configuration import HostConfiguration
from agentd.model.egress import PUBLIC, EgressBounds, StaticHost
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.typed import like
from agentd.sandbox.backends import identity

MIB = 1 << 20
GIB = 1 << 30
RELOADED = (
    "auth", "quotas", "pool", "template", "leases", "limits", "sandbox", "egress", "packages",
    "log", "policy", "approvals",
)  # fmt: skip

# As model.principal has it, of the type that the reader checks.
ORDINARY: tuple[Scope, ...] = ("run", "create", "files", "read", "ports", "snapshot")


class DaemonSettings(msgspec.Struct, frozen=True, kw_only=True):
    state: FilePath = FilePath("/var/lib/agentd")
    insecure: bool = False  # TCP without authentication; on loopback alone
    drain: Duration = Duration(30)  # how long running commands may go on after SIGTERM


class Listen(msgspec.Struct, frozen=True, kw_only=True):
    address: ListenAddress
    mode: Mode = Mode(0o600)  # of a unix socket
    group: str | None = None  # that owns it
    cert: FilePath | None = None  # PEM, with its chain; TLS where it is there
    key: FilePath | None = None
    client_ca: FilePath | None = None  # clients must have a certificate of it
    plain: bool = False  # TCP off loopback without TLS: behind a proxy that has it
    serves: tuple[DoorName, ...] = (DoorName("rest"),)  # the doors that are open there


class PeerUser(msgspec.Struct, frozen=True, kw_only=True):
    uid: Uid
    scopes: tuple[Scope, ...] = ORDINARY
    principal: Name | None = None  # else uid:N


class KeySettings(msgspec.Struct, frozen=True, kw_only=True):
    enabled: bool = True
    default_ttl: Duration | None = None
    max_ttl: Duration | None = None


class JwtIssuer(msgspec.Struct, frozen=True, kw_only=True):
    name: Name  # principals are called jwt:NAME:SUBJECT
    issuer: str
    audience: tuple[str, ...]
    algorithms: tuple[Algorithm, ...]
    jwks_file: FilePath | None = None
    jwks_url: str | None = None
    claim: str = "scope"  # whose values name scopes; a path with dots
    grants: dict[str, tuple[Scope, ...]] = {}  # its values -> scopes; empty: as they are named
    scopes: tuple[Scope, ...] = ORDINARY  # never more than these
    subject: str = "sub"
    leeway: Duration = Duration(30)


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    match: str  # uri:, dns:, email:, subject: or sha256:
    principal: Name
    scopes: tuple[Scope, ...] = ORDINARY


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that are signed by themselves, whatever way they come."""

    signers: FilePath | None = None  # a directory of public keys; none: no signature holds
    required: bool = False  # of every call
    max_age: Duration = Duration(300)  # of a signature
    skew: Duration = Duration(30)  # that a signer's clock may be ahead
    audience: Name | None = None  # what this daemon is called; else any daemon's requests do


class Auth(msgspec.Struct, frozen=True, kw_only=True):
    containers: bool = False  # let in peers of other user or pid namespaces by their uid
    peers: tuple[PeerUser, ...] = ()
    keys: KeySettings = KeySettings()
    jwt: tuple[JwtIssuer, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    signed: Signed = Signed()


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of one principal, over all its sandboxes."""

    sandboxes: int | None = None
    memory: Size | None = None
    disk: Size | None = None
    cpu_seconds: float | None = None  # of CPU time in any hour
    requests: float | None = None  # a second, on the average
    burst: int | None = None  # that may come at once
    concurrency: int | None = None  # commands that run at the same time


class Quotas(msgspec.Struct, frozen=True, kw_only=True):
    default: Quota = Quota()
    principals: dict[str, Quota] = {}  # by name; takes the place of the default as a whole


class PoolSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Sandboxes kept ready of one image behind one level of wall."""

    image: str = "default"
    isolation: Isolation = "namespace"
    backend: str | None = None
    min: int = 0
    max: int = 4
    ttl: Duration = Duration(600)  # that an idle one is kept


class Leases(msgspec.Struct, frozen=True, kw_only=True):
    default: Duration = Duration(600)
    max: Duration = Duration(86400)


class JournalSettings(msgspec.Struct, frozen=True, kw_only=True):
    memory: Size = Size(256 << 10)  # of a stream's end, kept in memory
    process: Size = Size(64 * MIB)  # of one process's output, on disk
    total: Size = Size(4 * GIB)
    keep: Duration = Duration(3600)  # after a process has ended
    compress: bool = True  # to whatever it is: a doubt says so, and what has it starts


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True):
    memory: Size | None = None
    cpus: float | None = None
    pids: int | None = None
    disk: Size | None = None
    open_files: int | None = None
    output: Size | None = None
    timeout: Duration | None = None
    net_bytes: Size | None = None  # over a network of rules, all connections, both ways
    net_rate: Size | None = None  # of these a second

    def limits(self) -> Limits:
        """Return plain numbers: what leaves the configuration is compared, counted and encoded."""
        named = ("memory", "disk", "output", "net_bytes", "net_rate")
        sizes = {name: _whole(getattr(self, name)) for name in named}
        timeout = None if self.timeout is None else float(self.timeout)
        return like(Limits, self, timeout=timeout, **sizes)


def _whole(size: Size | None) -> int | None:
    return None if size is None else int(size)


class TemplateSettings(LimitSettings, frozen=True, kw_only=True):
    """An image, and what sandboxes of it are made with: a request names all of it by one word."""

    name: Name
    image: str = "default"
    isolation: Isolation | None = None
    backend: str | None = None
    runtime: str | None = None
    net: str = "none"
    packages: tuple[str, ...] = ()
    user: str | None = None
    writable: bool = False
    env: dict[str, str] = {}
    start: tuple[str, ...] = ()  # a command that is begun in each
    ready: tuple[str, ...] = ()  # a command that succeeds once one may be handed out
    ready_timeout: Duration = Duration(30)  # until when it must
    min: int = 0  # that are kept ready, as of [[pool]]
    max: int = 4
    ttl: Duration = Duration(600)


class LimitBounds(msgspec.Struct, frozen=True, kw_only=True):
    default: LimitSettings = LimitSettings()  # where a request says nothing
    max: LimitSettings = LimitSettings()  # that a request may ask for


class SandboxSettings(msgspec.Struct, frozen=True, kw_only=True):
    minimum: Isolation = "namespace"  # no request gets less, whatever it asks for
    backends: tuple[str, ...] = ()  # those that may be used; empty: all
    runtime: Literal["runc", "crun"] | None = None  # of backend oci, where a request names none
    networks: tuple[Literal["none", "host", "restricted"], ...] = ("none",)
    mounts: tuple[FilePath, ...] = ()  # host folders beneath which a request may mount
    private_programs: bool = False  # the host's programs behind overlays: nobody sees their use
    # Of /etc and /var/lib: what packages put there for everybody to read, or what languages need.
    host_configuration: Literal["packages", "minimal"] = "packages"
    host_configuration_show: tuple[FilePath, ...] = ()  # beside that, as they are
    host_configuration_hide: tuple[FilePath, ...] = ()

    @property
    def level(self) -> IsolationLevel:
        return IsolationLevel.parse(self.minimum)

    def runtime_of(self, backend: str | None) -> str | None:
        """Return what builds a wall of ``backend`` where a request does not say."""
        return self.runtime if backend == "oci" else None

    @property
    def configuration(self) -> HostConfiguration:
        return HostConfiguration(
            self.host_configuration,
            tuple(map(str, self.host_configuration_show)),
            tuple(map(str, self.host_configuration_hide)),
        )


class OwnHost(msgspec.Struct, frozen=True, kw_only=True):
    """A name of one's own. Who is granted it by its whole name reaches ``address``."""

    name: HostName
    address: AddressAndPort


class EgressSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a restricted network may be granted."""

    allow: tuple[Grant, ...] = (Grant(PUBLIC),)  # rules, "public", "private"
    host: tuple[OwnHost, ...] = ()
    ca_file: FilePath | None = None  # PEM: whom else hosts may be signed by that are read

    def bounds(self) -> EgressBounds:
        hosts = (
            StaticHost(str(own.name), own.address.address, own.address.port) for own in self.host
        )
        return EgressBounds(
            tuple(map(str, self.allow)), tuple(hosts), ca_file=str(self.ca_file or "")
        )


class PortSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where browsers find the ports of sandboxes: each has a host name of its own."""

    url: PortsUrl | None = None  # https://ports.example.org; else the listener's, below localhost
    max_ttl: Duration = Duration(86400)  # of a link


class PackageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where packages of sandboxes come from, and how many are kept."""

    index: IndexUrl = IndexUrl("https://pypi.org/simple")  # as pip's --index-url
    net: tuple[Grant, ...] = ()  # the rules that it is reached by; empty: the index's host
    keep: Duration = Duration(86400)  # how long what a request became is not looked up again
    size: Size = Size(4 * GIB)  # of all that are kept, and so of those of one sandbox


class Ids(msgspec.Struct, frozen=True, kw_only=True):
    """User and group ids of the machine that sandboxes have, where the daemon is root."""

    start: int = identity.START  # nobody else's; whole blocks of 65,536 away from the default
    blocks: int = identity.BLOCKS  # one for each sandbox that lives, and a few of agentd's own

    def range(self) -> identity.Range:
        return identity.Range(self.start, self.blocks)


class Http(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of the HTTP server. Of both numbers a lone caller gets half; some is always left
    for the next."""

    connections: int = 2048  # of each [[listen]]
    waiting: int = 1024  # requests that wait for something in a sandbox
    body: Size = Size(64 * MIB)  # of a request that is not a streamed upload
    idle: Duration = Duration(60)  # of a connection between requests


class IdempotencySettings(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of one principal's Idempotency-Keys; new keys replace the oldest ended."""

    keep: Duration = Duration(3600)  # after their request has ended
    keys: int = 10_000
    answers: Size = Size(64 * MIB)  # that are kept


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True):
    enabled: bool = True
    public: bool = False  # without a credential


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True):
    """The policy that decides on every request. "none" leaves it to the scopes alone."""

    bundle: Bundle | None = Bundle("permissive")
    sha256: str | None = None  # of the bundle; another one is refused


class AuditSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The log of what was done, in the state directory. Old files are deleted only if asked for."""

    file: Size = Size(64 * MIB)  # then the next one is begun
    files: int | None = None  # that are kept
    keep: Duration | None = None  # how long one is kept
    sinks: tuple[Sink, ...] = ()
    receipts: Size = Size(256 * MIB)  # that are kept; they can be issued again from the log


class CapabilitySettings(msgspec.Struct, frozen=True, kw_only=True):
    """The hosts that http.fetch.v1 may reach: it acts in the daemon, not in a sandbox."""

    fetch_hosts: tuple[str, ...] = ()  # as example.org or *.example.org; empty: every public one
    fetch_networks: tuple[str, ...] = ()  # private ones that it may reach, as 10.1.0.0/16


class ApprovalSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that wait for somebody to allow them."""

    ttl: Duration = Duration(600)  # then they are refused
    max: int = 1000  # that wait at the same time
    self_approve: bool = False  # whether one may allow one's own


class Config(msgspec.Struct, frozen=True, kw_only=True):
    profile: str = "workstation"
    daemon: DaemonSettings = DaemonSettings()
    listen: tuple[Listen, ...] = ()
    auth: Auth = Auth()
    quotas: Quotas = Quotas()
    pool: tuple[PoolSettings, ...] = ()
    template: tuple[TemplateSettings, ...] = ()
    leases: Leases = Leases()
    journal: JournalSettings = JournalSettings()
    limits: LimitBounds = LimitBounds()
    sandbox: SandboxSettings = SandboxSettings()
    egress: EgressSettings = EgressSettings()
    ports: PortSettings = PortSettings()
    packages: PackageSettings = PackageSettings()
    ids: Ids = Ids()
    http: Http = Http()
    idempotency: IdempotencySettings = IdempotencySettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    policy: PolicySettings = PolicySettings()
    audit: AuditSettings = AuditSettings()
    capabilities: CapabilitySettings = CapabilitySettings()
    approvals: ApprovalSettings = ApprovalSettings()
