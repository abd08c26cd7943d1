"""The daemon's pipeline in this very process: the only place of the client that imports it."""

import gc
import os
import threading
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from agentd.client.elsewhere import way_to
from agentd.model.errors import InvalidInput
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import DEFAULT_IMAGE

if TYPE_CHECKING:
    # "as": re-exported, for the annotations of the rest of the client.
    from agentd.capability.registry import Catalogue as Catalogue  # noqa: PLC0414
    from agentd.daemon.admission.explain import Explained as Explained  # noqa: PLC0414
    from agentd.daemon.builds import SandboxRunner as SandboxRunner  # noqa: PLC0414
    from agentd.daemon.commands.command import Command as Command  # noqa: PLC0414
    from agentd.daemon.config import Config, ReadConfig
    from agentd.daemon.doctor import CheckedPart as CheckedPart  # noqa: PLC0414
    from agentd.daemon.doctor import Checkup as Checkup  # noqa: PLC0414
    from agentd.daemon.doctor import Finding as Finding  # noqa: PLC0414
    from agentd.daemon.installed import Installation
    from agentd.daemon.pipeline import Pipeline as Pipeline  # noqa: PLC0414
    from agentd.daemon.seccomp_profile import Profile as Profile  # noqa: PLC0414
    from agentd.model.api import CallBody, CallView, ExecBody, ResultView, SandboxBody
    from agentd.model.image import ImageView
    from agentd.model.limits import Limits
    from agentd.model.principal import Principal as Principal  # noqa: PLC0414
    from agentd.model.result import Result
    from agentd.model.secret import SecretValue
    from agentd.model.spec import ExecRequest, SandboxSpec
    from agentd.model.template import TemplateView
    from agentd.sandbox.manager import SandboxHandle as SandboxHandle  # noqa: PLC0414
    from agentd.sandbox.snapshots import Snapshot as Snapshot  # noqa: PLC0414
    from agentd.sandbox.volumes import VolumeStore
    from agentd.selftest.report import AttackRow as AttackRow  # noqa: PLC0414
    from agentd.selftest.report import SelftestReport as SelftestReport  # noqa: PLC0414

_lock = threading.Lock()
_shared: "Pipeline | None" = None


def new(begin: tuple[str | None, IsolationLevel, str] | None = None) -> "Pipeline":
    """Make a pipeline; the caller closes its ``manager``.

    ``begin`` is the backend, the least level and the kind of network that will be asked for: where
    that tells which backend it will be, its slow start goes on while the rest is imported. Raises
    SandboxError under a umask by which nobody could open what is made.
    """
    _check_umask()
    if begin is not None:
        _begin(*begin)
    from agentd.daemon.pipeline import Pipeline
    from agentd.sandbox.manager import Manager, connect

    return Pipeline(Manager(connect=partial(connect, elsewhere=way_to)))


def _check_umask() -> None:
    """agentd's own process changes it; of another's it is not ours to change."""
    from agentd.linux.process import umask

    mask = umask()
    if mask & 0o700:
        from agentd.model.errors import SandboxError

        raise SandboxError(
            f"the umask of this process, {mask:04o}, takes from us what we make",
            remediation="os.umask(0o077) before the first sandbox leaves it to its owner",
        )


def _begin(name: str | None, level: IsolationLevel, net: str) -> None:
    from agentd.sandbox import backends

    likely = name or next((n for n, known in backends.BUILTIN.items() if known.level >= level), "")
    if likely in backends.BUILTIN:
        backends.begin(likely, net)


def shared() -> "Pipeline":
    """Return the one of the whole process, closed when it exits; a forked child gets its own."""
    global _shared  # noqa: PLW0603  one zygote a process, however many sandboxes
    with _lock:
        if _shared is None or not _shared.manager.ours:
            import atexit

            _shared = new()
            atexit.register(_shared.manager.close)
        return _shared


def call(
    pipeline: "Pipeline",
    who: "Principal",
    body: "CallBody",
    emit: "Callable[[str, bytes], None] | None" = None,
    handle: "SandboxHandle | None" = None,
    cancel: int = -1,
) -> "CallView":
    """Call a capability, decided and written down as a daemon does it; ``handle`` is of
    ``body.sandbox``, and ``cancel`` a descriptor that ends it once it is readable.

    AGENTD_POLICY names the bundle (default: permissive). The log and the receipts lie in the
    user's state directory. Raises what refuses it, and what it fails with.
    """
    from agentd.daemon.calls import embedded

    return embedded.call(pipeline, who, body, emit, handle, cancel)


def commit(pipeline: "Pipeline", handle: "SandboxHandle", name: str) -> "ImageView":
    """Make an OCI image of what a sandbox is now. Raises what refuses it."""
    from agentd.daemon import commits

    return commits.commit(pipeline.manager, handle, name)


def step_runner(net: str, limits: "Limits") -> "SandboxRunner":
    """Make what runs the RUNs of a build, each in a sandbox; the caller closes it."""
    from agentd.daemon.builds import SandboxRunner

    return SandboxRunner(net, limits)


def check_run(body: "ExecBody") -> None:
    from agentd.daemon.commands import begin

    begin.check_run(body)


def execute(body: "ExecBody", complete: "Callable[[ExecRequest, bytes], Result]") -> "ResultView":
    """Have the command of a body completed; return its result as the contract has it. Raises
    InvalidInput."""
    from agentd.daemon.commands import begin, ends

    begin.check_waited(body)
    stdin = begin.stdin_of(body)
    result = complete(begin.request_of(body, bool(stdin)), stdin)
    return ends.with_output(ends.of_result(result, ""), result.stdout, result.stderr)


def doctor() -> "Checkup":
    """Tell what will happen here, every backend's finding, and the facts of the machine."""
    from agentd.daemon import doctor

    return doctor.checkup()


def installation() -> "Installation":
    """Tell what this agentd was installed by, and the distributions that clash with it."""
    from agentd.daemon import installed

    return installed.installation()


def selftest(
    names: Sequence[str],
    *,
    thorough: bool,
    told: "Callable[[str, AttackRow], None]",
    image: str = DEFAULT_IMAGE,
) -> "SelftestReport":
    """Attack these walls, or those that start at once, in sandboxes of an image.

    Raises InvalidInput for a backend nobody has, NotFound for such an image.
    """
    from agentd.selftest import selftest

    pipeline = new()
    try:
        return selftest(pipeline, names, thorough=thorough, image=image, told=told)
    finally:
        pipeline.manager.close()


def seccomp_profile(
    capability: str | None, level: IsolationLevel | None, net: str | None, *, rw: bool
) -> "Profile":
    """Return the system call filter of a level's sandboxes. Raises InvalidInput."""
    from agentd.daemon.seccomp_profile import profile

    return profile(capability, level, net, rw=rw)


def seccomp_assembly(profile: "Profile") -> list[str]:
    from agentd.daemon.seccomp_profile import assembly

    return assembly(profile)


def read_config(path: str | None) -> "tuple[str | None, ReadConfig]":
    """Return the daemon's configuration as this process would have it, and the file it is from.

    Without ``path`` the file is the usual one, or none where there is none.
    """
    from agentd.daemon import config

    where = path or config.find(os.environ)
    return where, config.read(where)


def state_directory() -> str:
    """Return where a daemon of this configuration keeps what it keeps. Raises AgentdError."""
    from agentd.daemon import config

    return config.load(config.find(os.environ), dict(os.environ), ()).daemon.state


def own_directory() -> str:
    """Return where calls without a daemon keep what they keep."""
    from agentd.daemon.calls import embedded

    return embedded.state_directory()


def volumes() -> "VolumeStore":
    """Open the volumes that need no daemon."""
    from agentd.daemon.calls import embedded

    return embedded.volumes()


def of_template(body: "SandboxBody") -> "tuple[SandboxBody, Config]":
    """Return the body with what its template says, and the configuration that has that: the one
    that a daemon with this process's environment would have. Raises AgentdError."""
    from agentd.daemon.calls import embedded

    return embedded.of_template(body)


def templates() -> "tuple[TemplateView, ...]":
    """List those of that configuration, of which none stands ready. Raises AgentdError."""
    from agentd.daemon import config
    from agentd.daemon.sandboxes import templates

    return templates.views(config.load(config.find(os.environ), dict(os.environ), ()), {})


def made_of(
    config: "Config",
    pipeline: "Pipeline",
    who: "Principal",
    spec: "SandboxSpec",
    values: "Mapping[str, SecretValue]",
) -> "SandboxHandle":
    """Make a sandbox of a template, ready as that says; ``values`` are those of its secrets.
    Raises what refuses it, and NotReady."""
    from agentd.daemon.sandboxes import starting

    return starting.built(pipeline, pipeline.admit(who, spec), None, config, values)


def given_secrets(
    spec: "SandboxSpec", body: "SandboxBody"
) -> "tuple[SandboxSpec, Mapping[str, SecretValue]]":
    """Return the spec with what stands in for its secrets, and their values; one without a source
    is a variable of this process. Raises InvalidInput, Refused."""
    if not spec.secrets:
        return spec, {}
    from agentd.client import secrets
    from agentd.daemon.sandboxes import given_secrets

    return given_secrets.given(spec, body.secrets, secrets.of_this_process)


def with_own_hosts(spec: "SandboxSpec") -> "SandboxSpec":
    """Return the spec, with what a configuration of this process's says of its network: hosts of
    its own and certificates. Raises InvalidInput."""
    from agentd.daemon import pipeline

    return pipeline.with_own_hosts(spec)


def with_volumes(who: "Principal", spec: "SandboxSpec") -> "SandboxSpec":
    """Return the spec, with the place of each volume. Raises NotFound."""
    from agentd.daemon.calls import embedded

    return embedded.found(who, spec)


def serve(
    path: str | None,
    env: MutableMapping[str, str],
    profile: str | None,
    options: "Sequence[tuple[Sequence[str], object]]",
) -> int:
    """Run the daemon until a signal ends it. Raises AgentdError where it cannot come up.

    The configuration is read anew at each reload, with the same options above it.
    """
    from agentd.daemon import config

    if profile and profile not in config.PROFILES:
        raise InvalidInput(f"--profile {profile!r} is unknown", remediation=config.meant(profile))
    settings = {**env, "AGENTD_PROFILE": profile} if profile else dict(env)

    def load() -> config.Config:
        return config.load(path or config.find(settings), settings, options)

    load()  # what is wrong with it is told before anything slow is imported
    gc.disable()  # nothing that a daemon comes up with is garbage
    try:
        from agentd.serve import compose

        def ready(names: "Sequence[str]") -> None:
            gc.freeze()
            gc.enable()
            compose.announce(names)

        return compose.serve(load, ready, env)
    finally:
        gc.enable()


def explain_policy(
    where: str | None,
    call: str,
    parameters: Mapping[str, object],
    *,
    principal: str,
    scopes: Sequence[str] | None,
    sandbox: Mapping[str, object],
) -> "Explained":
    """Tell what a bundle would decide, and why; without ``where`` the one that is in force.

    Raises InvalidInput for a bundle that cannot be used and for parameters that the capability
    refuses, NotFound for one that nobody has, AgentdError.
    """
    from agentd.daemon.admission import explain

    return explain.explain(
        where, call, parameters, principal=principal, scopes=scopes, sandbox=sandbox
    )
