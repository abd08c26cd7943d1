"""What a policy obliges to, enforced: a spec or a command within it, or a refusal."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import msgspec

from agentd.model.decision import Obligations
from agentd.model.errors import PolicyDenied, Unavailable
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits, said
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.backends import limits
from agentd.sandbox.backends.limits import with_defaults

N = TypeVar("N", int, float)
# Of one command; the others are of a whole sandbox.
_PER_COMMAND = ("timeout", "output")
_OF_NETWORK = ("net_bytes", "net_rate")
_UNBOUNDED = Limits()  # as most policies leave it


def new_sandbox(spec: SandboxSpec, obligations: Obligations) -> SandboxSpec:
    """Return the spec as it may be built: a stronger wall and lower limits, never less than asked.

    Raises PolicyDenied where a network was asked for and there must be none: to leave it out in
    silence would be another thing than was asked for.
    """
    _check_network(spec, obligations)
    if obligations.no_network and spec.packages:
        raise PolicyDenied(
            "the policy allows no network here",
            cause="packages are fetched by one",
            remediation="leave the packages out, or use an image that has them",
        )
    level = max(spec.isolation, obligations.level or IsolationLevel.NONE)
    return msgspec.structs.replace(
        spec, isolation=level, limits=within(spec.limits, obligations.limits)
    )


def restored_sandbox(spec: SandboxSpec, obligations: Obligations) -> SandboxSpec:
    """Return it as ``new_sandbox``, of a snapshot: no limit of a machine that is kept is lowered.

    Raises PolicyDenied also where it has more than there may be.
    """
    _check_limits(exceeded(spec.limits, obligations.limits, network=False), "snapshot")
    return msgspec.structs.replace(
        new_sandbox(spec, obligations), limits=lowered(spec.limits, obligations.limits)
    )


@contextlib.contextmanager
def telling_least(least: IsolationLevel, who: str) -> Iterator[None]:
    """Let a refusal within the block say that ``who`` wants a wall so strong, and recommend none
    that is weaker."""
    try:
        yield
    except Unavailable as error:
        if error.wanted == least > IsolationLevel.PROCESS:
            error.message = f"{who} wants isolation {least.label}, and {error.message}"
            error.remediation = error.remediation.removeprefix(error.weaker)
        raise


def existing_sandbox(spec: SandboxSpec, level: IsolationLevel, obligations: Obligations) -> None:
    """Check one that is there already. Raises PolicyDenied where it is less than must hold."""
    _check_network(spec, obligations)
    if obligations.level is not None and level < obligations.level:
        raise PolicyDenied(
            f"the policy wants a wall of level {obligations.level.label}",
            cause=f"the sandbox has {level.label}",
            remediation=f"create one with isolation {obligations.level.label!r}",
        )
    if obligations.limits != _UNBOUNDED:
        over = exceeded(spec.limits, obligations.limits, network=spec.net != "none")
        _check_limits(over, "sandbox")


def _check_limits(over: "Iterator[Exceeded]", what: str) -> None:
    for limit in over:
        most = said(limit.name, limit.most)
        raise PolicyDenied(
            f"the policy wants {limit.name} of at most {most}",
            cause=f"the {what} has {said(limit.name, limit.held)}",
            remediation=f"create one with {limit.name} of at most {most}",
        )


def both(one: Obligations, other: Obligations) -> Obligations:
    """Return what holds where each of them must."""
    return Obligations(
        level=max(one.level or IsolationLevel.NONE, other.level or IsolationLevel.NONE) or None,
        limits=within(one.limits, other.limits),
        no_network=one.no_network or other.no_network,
        approve=one.approve or other.approve,
    )


def command(request: ExecRequest, obligations: Obligations) -> ExecRequest:
    """Return the command with the lower time and output limits."""
    most = obligations.limits
    if most.timeout is None and most.output is None:
        return request
    return msgspec.structs.replace(
        request,
        timeout=least(request.timeout, most.timeout),
        output_limit=least(request.output_limit, most.output),
    )


def _check_network(spec: SandboxSpec, obligations: Obligations) -> None:
    if obligations.no_network and spec.net != "none":
        raise PolicyDenied(
            "the policy allows no network here",
            cause=f"the sandbox has {spec.net!r}",
            remediation="use a sandbox with network none",
        )


def within(asked: Limits, most: Limits) -> Limits:
    """Bound it by ``most``. What was not asked for keeps its usual value where that is less: a
    maximum is no default. It then stands in the spec, so that a wall that cannot hold it refuses.
    """
    # Memory first: the usual disk is a part of it.
    memory = least(asked.memory or with_defaults(asked).memory, most.memory)
    if most.memory is not None:
        asked = msgspec.structs.replace(asked, memory=memory)
    usual = msgspec.structs.asdict(limits.usual(asked))
    bounds = msgspec.structs.asdict(most)
    held = msgspec.structs.asdict(asked)
    for name, bound in bounds.items():
        if bound is not None:
            held[name] = least(usual[name] if held[name] is None else held[name], bound)
    return Limits(**held)


class Exceeded(NamedTuple):
    """A limit of a sandbox, None where it has none, and the most that it may be."""

    name: str
    held: float | None
    most: float


def exceeded(held: Limits, most: Limits, *, network: bool) -> Iterator[Exceeded]:
    """Yield each limit of a whole sandbox, its ``network``'s among them or not, that is above
    ``most``. What was not asked for is as usual."""
    usual = msgspec.structs.asdict(limits.usual(held))
    for name in _PER_COMMAND if network else (*_PER_COMMAND, *_OF_NETWORK):
        del usual[name]
    for name, value in usual.items():
        bound = getattr(most, name)
        if bound is not None and (value is None or value > bound):
            yield Exceeded(name, value, bound)


def lowered(held: Limits, most: Limits) -> Limits:
    """Lower what is no machine's: the bounds of a command, and of what a network moves."""
    names = (*_PER_COMMAND, *_OF_NETWORK)
    chosen = {name: least(getattr(held, name), getattr(most, name)) for name in names}
    return msgspec.structs.replace(held, **chosen)


def least(asked: N | None, most: N | None) -> N | None:
    if asked is None or most is None:
        return most if asked is None else asked
    return min(asked, most)
