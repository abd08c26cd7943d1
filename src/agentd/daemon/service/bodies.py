"""A body made into a spec, within what the daemon's configuration lets anybody ask for."""

import os

import msgspec

from agentd.daemon.config.schema import Bounds, Config
from agentd.model import options
from agentd.model.api import SandboxBody
from agentd.model.errors import Forbidden, Refused
from agentd.model.limits import Limits
from agentd.model.principal import Principal
from agentd.model.spec import SandboxSpec
from agentd.model.units import parse_duration


def sandbox_spec(who: Principal, body: SandboxBody, config: Config) -> SandboxSpec:
    """Raises InvalidInput for what is malformed, Refused and Forbidden for what is not allowed."""
    spec = options.sandbox_spec(**body.options())
    rules = config.sandbox
    if spec.isolation < rules.level:
        spec = msgspec.structs.replace(spec, isolation=rules.level)
    if rules.backends and spec.backend is not None and spec.backend not in rules.backends:
        raise Refused(
            f"backend {spec.backend} may not be used here",
            remediation=f"use one of: {', '.join(rules.backends)}",
        )
    if spec.net not in rules.networks:
        raise Refused(
            f"network {spec.net} is not allowed here",
            remediation="leave it out, or have it added to sandbox.networks",
        )
    _check_mounts(who, spec, config)
    bounds = config.limits
    return msgspec.structs.replace(spec, limits=_bounded(spec.limits, bounds.default, bounds.max))


def restored_spec(kept: SandboxSpec, body: SandboxBody) -> SandboxSpec:
    """Of a sandbox from a snapshot: only ``env``, ``timeout`` and ``output`` may be chosen."""
    wanted: options.SandboxOptions = {
        "env": body.env,
        "timeout": body.timeout,
        "output": body.output,
    }
    return options.restored_spec(kept, **wanted)


def ttl_of(body: SandboxBody) -> float | None:
    return None if body.ttl is None else parse_duration(body.ttl, "ttl")


def _check_mounts(who: Principal, spec: SandboxSpec, config: Config) -> None:
    """The daemon reads with its own rights: only beneath what it was told that it may show."""
    if spec.mounts and not who.may("admin") and who.via != "peer":
        raise Forbidden(
            "host paths can be mounted by callers on the unix socket alone",
            remediation="write the files into the sandbox",
        )
    roots = [os.path.realpath(root) for root in config.sandbox.mounts]
    for mount in spec.mounts:
        source = os.path.realpath(mount.source)
        if not any(os.path.commonpath((root, source)) == root for root in roots):
            raise Refused(
                f"{mount.source} may not be mounted",
                remediation="have its folder added to sandbox.mounts, or write the files into "
                "the sandbox",
            )


def _bounded(asked: Limits, default: Bounds, most: Bounds) -> Limits:
    """The defaults where nothing was asked; Refused for more than the most."""
    values = msgspec.structs.asdict(asked)
    usual, bounds = msgspec.structs.asdict(default), msgspec.structs.asdict(most)
    for name, value in values.items():
        bound = bounds[name]
        if value is None:
            values[name] = usual[name] if usual[name] is not None else bound
        elif bound is not None and value > bound:
            raise Refused(
                f"{name} of {value:g} is more than the {bound:g} allowed here",
                remediation="ask for less, or have limits.max raised",
            )
    return Limits(**values)
