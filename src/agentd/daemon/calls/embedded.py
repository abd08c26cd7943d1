"""Calls without a daemon: the same decisions, records and receipts, in the caller's own process."""

import atexit
import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from agentd.audit.errors import AuditError
from agentd.capability.call import Emit
from agentd.daemon.admission.control import POLICY, AdmissionControl
from agentd.daemon.calls.calls import Calls
from agentd.daemon.config import profiles, schema
from agentd.daemon.config.values import Bundle
from agentd.daemon.pipeline import run, with_own_hosts
from agentd.daemon.sandboxes import starting, templates
from agentd.model.api import CallBody, CallView, SandboxBody, Time
from agentd.model.errors import InvalidInput, NotFound, Refused
from agentd.model.options import refuse_daemons, sandbox_spec
from agentd.model.principal import Principal
from agentd.model.result import Result
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.model.system import os_errors_as
from agentd.sandbox.backends.image_root import resolved
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.volumes import VolumeStore

if TYPE_CHECKING:
    from agentd.daemon.config.schema import Config
    from agentd.daemon.pipeline import Pipeline

STATE = "AGENTD_DAEMON__STATE"  # as a daemon's configuration reads it
# Beside the daemon's, whose log is its own alone.
FOLDER = "embedded"
_lock = threading.Lock()
_shared: "tuple[tuple[str, str, int], AdmissionControl] | None" = None


def call(
    pipeline: "Pipeline",
    who: Principal,
    body: CallBody,
    emit: Callable[[str, bytes], None] | None,
    handle: SandboxHandle | None,
    cancel: int = -1,
) -> CallView:
    if body.signature is not None:
        raise InvalidInput(
            "a signed request is for a daemon",
            remediation="run agentd serve, or leave the signature out",
        )
    if body.keep:
        raise Refused(
            "a daemon is needed to keep a command",
            cause="what is in this process lives and ends with it",
            remediation="give url=, with agentd serve running",
        )
    control = shared()
    places = OwnSandboxes(pipeline, handle)
    calls = Calls(control.registry, control.gate, places)
    return calls.call(who, body, emit, via="embedded", cancel=cancel)


def shared() -> AdmissionControl:
    """Return the one of the whole process; a forked child, or another policy, gets its own."""
    global _shared  # noqa: PLW0603  one log, however many calls
    bundle = os.environ.get(POLICY) or "permissive"
    state = state_directory()
    key = (bundle, state, os.getpid())
    with _lock:
        if _shared is None or _shared[0] != key:
            old = _shared
            _make(state)
            policy = schema.PolicySettings(bundle=None if bundle == "none" else Bundle.of(bundle))
            made = AdmissionControl(state, policy, schema.AuditSettings(), shared=True)
            _shared = key, made
            atexit.register(made.close)
            if old is not None and old[0][2] == os.getpid():
                old[1].close()
        return _shared[1]


def state_directory() -> str:
    """Return it, whatever a configuration file says: what that names may be another user's."""
    daemons = (
        os.environ.get(STATE)
        or profiles.preset(profiles.DEFAULT, os.environ, os.geteuid())["daemon"]["state"]
    )
    return os.path.join(daemons, FOLDER)


def volumes() -> VolumeStore:
    """Open the volumes that need no daemon: those of one with the same state, too."""
    return VolumeStore(os.path.join(os.path.dirname(state_directory()), "volumes"))


def found(who: Principal, spec: SandboxSpec) -> SandboxSpec:
    """Return the spec, with the place of each volume. Raises NotFound."""
    if not any(mount.volume for mount in spec.mounts):
        return spec
    return msgspec.structs.replace(spec, mounts=volumes().found(who.name, spec.mounts))


def of_template(body: SandboxBody) -> tuple[SandboxBody, "Config"]:
    """Return the body with what its template says, and the configuration that has that: the one
    that a daemon with this process's environment would have. Raises AgentdError."""
    from agentd.daemon import config  # late: few need it

    path = config.find(os.environ)
    read = config.load(path, dict(os.environ), ())
    try:
        return templates.completed(body, read), read
    except NotFound as error:
        error.message += f" in {path}" if path else ": there is no configuration file"
        if path is None:
            error.remediation = "name one by AGENTD_CONFIG, with a [[template]] in it"
        raise


def _make(state: str) -> None:
    """Where the log and the receipts of calls lie. Raises AuditError: no call goes without them."""
    with os_errors_as(
        AuditError,
        f"the log and the receipts of calls cannot be kept in {state}",
        # Root's place does not depend on the other (daemon.config.profiles).
        f"set {'XDG_STATE_HOME' if os.geteuid() else 'AGENTD_DAEMON__STATE'} to a folder that you "
        "can write to",
    ):
        os.makedirs(state, 0o700, exist_ok=True)
        if not os.access(state, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


class OwnSandboxes:
    """The ``CallSandboxes`` of a process: the sandbox that the caller holds, or a new one."""

    def __init__(self, pipeline: "Pipeline", handle: SandboxHandle | None) -> None:
        self._pipeline = pipeline
        self._handle = handle
        self._config: Config | None = None  # with the template of a call

    def get(self, who: Principal, body: CallBody) -> tuple[SandboxHandle, Mapping[str, str]]:
        handle = self._handle
        if handle is None or handle.id != body.sandbox:
            raise NotFound(
                f"this process has no sandbox {(body.sandbox or '')[:64]!r}",
                remediation="name a daemon with --url, or leave the sandbox out",
            )
        return handle, {}

    def plan(self, who: Principal, body: CallBody) -> tuple[SandboxSpec, Mapping[str, str]]:
        create = body.create
        refuse_daemons(create, "snapshot")
        if create.secrets:
            raise InvalidInput(
                "a sandbox that is made for a call has no secrets",
                remediation="create one with them, and call in that",
            )
        if create.template is not None:
            create, self._config = of_template(create)
        spec = found(who, resolved(sandbox_spec(**create.options())))
        spec = with_own_hosts(msgspec.structs.replace(spec, template=create.template or ""))
        if spec.packages:
            fetched = self._pipeline.package_rules().egress
            spec = msgspec.structs.replace(spec, index_egress=fetched)
        return spec, {}

    def run(
        self,
        who: Principal,
        handle: SandboxHandle,
        request: ExecRequest,
        stdin: bytes,
        emit: Emit | None,
        cancel: int,
        *,
        kept: list[str] | None = None,
    ) -> Result:
        return run(handle, request, stdin, emit, cancel)

    @contextmanager
    def made(
        self,
        who: Principal,
        spec: SandboxSpec,
        labels: Mapping[str, str],
        ttl: Time | None = None,
    ) -> Iterator[SandboxHandle]:
        if self._config is None:
            handle = self._pipeline.build(spec)
        else:
            handle = starting.built(self._pipeline, spec, None, self._config)
        try:
            yield handle
        finally:
            self._pipeline.close(handle)
