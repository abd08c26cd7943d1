"""A body made into a spec, within what the daemon's configuration lets anybody ask for."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import msgspec

from agentd.daemon.admission import oblige
from agentd.daemon.config.schema import Config, LimitBounds, SandboxSettings
from agentd.daemon.sandboxes import templates
from agentd.model import options
from agentd.model.api import SandboxBody, Time
from agentd.model.egress import REPLAY, RESTRICTED, Net, cassette
from agentd.model.errors import Refused, Unavailable
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits, said
from agentd.model.mount import Mount
from agentd.model.principal import Principal
from agentd.model.spec import SandboxSpec
from agentd.model.system import os_errors_as
from agentd.model.units import parse_duration, parse_wait
from agentd.sandbox.backends import BUILTIN
from agentd.sandbox.backends.image_root import resolved
from agentd.sandbox.volumes import VolumeStore

MAX_WAIT_SECONDS = 3600.0  # for room in a quota


def sandbox_spec(who: Principal, body: SandboxBody, config: Config) -> SandboxSpec:
    """Return the spec that a body asks for. Raises InvalidInput for what is malformed, Refused and
    Forbidden for what is not allowed."""
    body = templates.completed(body, config)
    spec = options.sandbox_spec(**body.options())
    rules = config.sandbox
    spec = _allowed(who, spec, rules)
    spec = _granted(spec, config)
    if spec.packages:
        spec = _fetched(who, spec, config)
    return msgspec.structs.replace(
        resolved(spec),
        mounts=_judged(who, spec.mounts, config),
        limits=bounded(spec.limits, config.limits),
        runtime=spec.runtime or rules.runtime_of(spec.backend),
        private_programs=rules.private_programs,
        configuration=rules.configuration,
        template=body.template or "",
    )


def restored_spec(
    who: Principal, kept: SandboxSpec, body: SandboxBody, config: Config
) -> SandboxSpec:
    """Return the spec of a sandbox from a snapshot: ``env``, ``timeout``, ``output`` and the rules
    of a restricted network are chosen.

    What the snapshot brings is asked for anew: a scope may have been taken away since, and the
    configuration may allow less.
    """
    templates.completed(body, config)
    wanted = body.options()
    if body.net == kept.net:
        wanted["net"] = None
    spec = _allowed(who, options.restored_spec(kept, **wanted), config.sandbox)
    _check_kept(kept.limits, config)
    if spec.packages:
        _fetched(who, spec, config)  # what they take is asked for anew, as all of it is
    judged = _judged(who, spec.mounts, config)
    spec = msgspec.structs.replace(resolved(spec, kept=True), mounts=judged)
    spec = _granted(spec, config)
    asked = Limits(timeout=spec.limits.timeout, output=spec.limits.output)
    limits = oblige.lowered(spec.limits, bounded(asked, config.limits))
    return msgspec.structs.replace(spec, limits=limits)


def _check_kept(kept: Limits, config: Config) -> None:
    """Raises Refused for more than is allowed: what a machine is kept with cannot be lowered."""
    for name, held, bound in oblige.exceeded(kept, config.limits.max.limits(), network=False):
        raise Refused(
            f"{name} of {said(name, held)} is more than the {said(name, bound)} allowed here",
            remediation="create one with less, or have limits.max raised",
        )


def _allowed(who: Principal, spec: SandboxSpec, rules: SandboxSettings) -> SandboxSpec:
    """``spec`` with the level that is the least here. Raises Refused and Forbidden."""
    _check_level(spec, rules.level)
    if rules.backends and spec.backend is not None and spec.backend not in rules.backends:
        raise Refused(
            f"backend {spec.backend} may not be used here",
            remediation=f"use one of: {', '.join(rules.backends)}",
        )
    _check_network(spec, rules)
    _check_scopes(who, spec)
    return msgspec.structs.replace(spec, isolation=max(spec.isolation, rules.level))


def forked_spec(who: Principal, spec: SandboxSpec, config: Config) -> SandboxSpec:
    """Return the spec of a sandbox's forks: what it has is asked for anew, as of a snapshot; what a
    command, and a network, may take is lowered to what is allowed. Raises Refused and Forbidden."""
    spec = _allowed(who, spec, config.sandbox)
    _check_kept(spec.limits, config)
    if spec.packages:
        _fetched(who, spec, config)
    spec = _granted(spec, config)
    limits = oblige.lowered(spec.limits, config.limits.max.limits())
    return msgspec.structs.replace(spec, limits=limits)


def _check_network(spec: SandboxSpec, rules: SandboxSettings) -> None:
    if spec.net not in rules.networks and not _reaches_nothing(spec):
        raise Refused(
            f"network {spec.net} is not allowed here",
            remediation="leave it out, or have it added to sandbox.networks",
        )


def _reaches_nothing(spec: SandboxSpec) -> bool:
    """Whether it is answered from a cassette, whatever its rules say: nobody has to grant them."""
    return spec.net == RESTRICTED and cassette(spec.egress) == REPLAY


def regranted(spec: SandboxSpec, net: Net, config: Config) -> SandboxSpec:
    """Return it with other rules of its network, which is restricted. Raises InvalidInput, Refused
    for more than is granted here."""
    asked = options.with_rules(spec, net)
    if asked.egress:  # to take away what it has is never refused
        _check_network(asked, config.sandbox)
    return _granted(asked, config)


def _granted(spec: SandboxSpec, config: Config) -> SandboxSpec:
    """Return it with the bounds of what a restricted network may be granted here. Raises Refused
    for more than these."""
    if spec.net != RESTRICTED:
        return spec
    bounds = config.egress.bounds()
    from agentd.egress.compile import compile_table  # late: few need it

    compile_table(spec.egress, bounds)
    return msgspec.structs.replace(spec, egress_bounds=bounds)


def _fetched(who: Principal, spec: SandboxSpec, config: Config) -> SandboxSpec:
    """Return it with the rules that its packages are fetched by: it takes what a network of these
    takes. Raises Forbidden, Refused for more than is granted here."""
    from agentd.daemon.packages import rules
    from agentd.egress.compile import compile_table

    found = rules.of(config)
    try:
        who.require("egress")
        _check_network(msgspec.structs.replace(spec, net=RESTRICTED), config.sandbox)
        compile_table(found.egress, found.bounds)
    except Refused as error:  # of a network that nobody has asked for
        raise type(error)(
            f"packages need a network to be fetched: {error.message}",
            cause=error.cause,
            remediation=f"for packages: {error.remediation}",
        ) from None
    return msgspec.structs.replace(spec, index_egress=found.egress)


def _check_level(spec: SandboxSpec, least: IsolationLevel) -> None:
    """Raises Refused for a wall that is named and is too weak for here, whatever was asked for."""
    known = BUILTIN.get(spec.backend or "")
    if known is not None and known.level < least:
        raise Refused(
            f"backend {spec.backend} gives isolation {known.level.label}, "
            f"less than the {least.label} that is the least here",
            remediation="name another, or have sandbox.minimum lowered",
        )


@contextlib.contextmanager
def telling_least(spec: SandboxSpec, asked: IsolationLevel, config: Config) -> Iterator[None]:
    """Let a refusal within the block say whether the policy or the configuration wants so strong a
    wall; ``asked`` is the isolation that the caller wanted."""
    raised = spec.isolation if spec.isolation > asked else IsolationLevel.NONE
    try:
        with oblige.telling_least(raised, "the policy"):
            yield
    except Unavailable as error:
        least = config.sandbox.level
        if spec.backend is None and spec.isolation == least > IsolationLevel.PROCESS:
            error.remediation += (
                f"; or, as sandbox.minimum is {least.label} here: "
                "AGENTD_SANDBOX__MINIMUM=process agentd serve, and ask for isolation process"
            )
        raise


def ttl_of(ttl: Time | None) -> float | None:
    return None if ttl is None else parse_duration(ttl, "ttl")


def wait_of(body: SandboxBody) -> float:
    """Return the seconds to wait for room. Raises InvalidInput for more than an hour."""
    return 0.0 if body.wait is None else parse_wait(body.wait, MAX_WAIT_SECONDS)


def _check_scopes(who: Principal, spec: SandboxSpec) -> None:
    """The host's folders and its network are the daemon's to give, with its own rights."""
    if any(mount.is_hosts for mount in spec.mounts):
        who.require("mount")
    if any(mount.volume for mount in spec.mounts):
        who.require("volumes")
    if spec.net != "none" and not _reaches_nothing(spec):
        who.require("egress" if spec.net == RESTRICTED else "net")


def volumes(config: Config) -> VolumeStore:
    return VolumeStore(os.path.join(str(config.daemon.state), "volumes"))


def _judged(who: Principal, mounts: tuple[Mount, ...], config: Config) -> tuple[Mount, ...]:
    """Only beneath what the daemon was told that it may show; each by the path that was judged.

    Its caller may be able to put a link there a moment later: backends open it without following
    any. Volumes are found among the caller's own. Raises Refused, NotFound.
    """
    roots = config.sandbox.mounts
    folders = tuple(
        mount
        if not mount.is_hosts
        else msgspec.structs.replace(mount, source=_source(mount, roots))
        for mount in mounts
    )
    return volumes(config).found(who.name, folders)


def _source(mount: Mount, roots: Sequence[str]) -> str:
    # Python 3.11 and 3.12 raise one where a link is replaced as it is read.
    fix = "leave it as it is while it is mounted"
    with os_errors_as(Refused, f"cannot read {mount.source}", fix):
        source = os.path.realpath(mount.source)
    # As they were when the configuration was read: not what has their names by now.
    if any(os.path.commonpath((root, source)) == root for root in roots):
        return source
    raise Refused(
        f"{mount.source} may not be mounted",
        remediation="have its folder added to sandbox.mounts, or write the files into the sandbox",
    )


def bounded(asked: Limits, bounds: LimitBounds) -> Limits:
    """Return ``limits.default`` where none was asked, else the usual one, within ``limits.max``.

    Raises Refused for more than that.
    """
    most = bounds.max.limits()
    values = msgspec.structs.asdict(asked)
    usual, highest = msgspec.structs.asdict(bounds.default.limits()), msgspec.structs.asdict(most)
    for name, value in values.items():
        bound = highest[name]
        if value is None:
            values[name] = usual[name]
        elif bound is not None and value > bound:
            raise Refused(
                f"{name} of {said(name, value)} is more than the {said(name, bound)} allowed here",
                remediation="ask for less, or have limits.max raised",
            )
    return oblige.within(Limits(**values), most)
