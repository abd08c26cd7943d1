"""The cheapest wall that satisfies a spec, or a refusal with every blocker and its fix."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

import msgspec

from agentd.model.availability import Blocker
from agentd.model.errors import AgentdError, InvalidInput, Refused, SandboxError, Unavailable
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.sandbox import backends
from agentd.sandbox.abilities import NETWORK, incapable
from agentd.sandbox.ports import Backend, Plan


class Choice(NamedTuple):
    backend: Backend
    plan: Plan


# Gives the one backend object of a name; the caller owns it.
Loader = Callable[[str], Backend]


def choose(
    spec: SandboxSpec,
    load: Loader,
    allowed: Collection[str] = (),
    least: IsolationLevel = IsolationLevel.NONE,
) -> Choice:
    """Tries the walls that may do, weakest first; the first usable one that can plan ``spec`` wins.

    ``allowed`` names those that may be used; empty: all. ``least`` is the level that every sandbox
    here has at least: a refusal recommends accordingly. Raises Unavailable when none does, Refused
    when the named backend is too weak, InvalidInput when the spec itself is wrong.
    """
    if allowed and spec.backend is not None and spec.backend not in allowed:
        raise Refused(
            f"backend {spec.backend} may not be used here",
            remediation=f"use one of: {', '.join(allowed)}",
        )
    _check_known_runtime(spec)
    spec = _with_budget(spec)
    blockers: list[tuple[str, Blocker]] = []
    for backend in _candidates(spec, load, allowed, blockers):
        if backend.level < spec.isolation:
            raise _too_weak(spec, backend)  # a named one: the others are at least as strong
        availability = backends.probe(backend)
        if not availability.usable:
            blockers += [(backend.name, blocker) for blocker in availability.blockers]
            continue
        try:
            _check_image(spec, backend)
            _check_writable(spec, backend)
            _check_runtime(spec, backend)
            _check_volumes(spec, backend)
            _check_network(spec, backend)
            return Choice(backend, backends.plan(backend, spec))
        except Refused as refusal:
            if spec.backend is not None:
                raise
            blockers.append((backend.name, _as_blocker(refusal)))
        except backends.ANYTHING as error:
            # From afar a third party's is one of ours.
            known = isinstance(error, AgentdError) and type(error) is not SandboxError
            if known or backend.name in backends.BUILTIN:
                raise
            blockers.append((backend.name, backends.broken("used", error)))
    raise _unavailable(spec, blockers, _weaker(spec, load, allowed), least)


def _with_budget(spec: SandboxSpec) -> SandboxSpec:
    """Have the relay know what its network may move. Raises Refused where there is no relay."""
    if spec.net == "none" or not _has_budget(spec):
        return spec
    if spec.net == "host":
        raise _boundless()
    return msgspec.structs.replace(spec, egress_bounds=spec.network_bounds)


def _has_budget(spec: SandboxSpec) -> bool:
    return spec.limits.net_bytes is not None or spec.limits.net_rate is not None


def _boundless() -> Refused:
    return Refused(
        "what goes over the host's network cannot be bounded",
        cause="net_bytes or net_rate is set",
        remediation="have rules, as --net pypi, in its place",
    )


def describe(name: str, blocker: Blocker) -> tuple[str, str]:
    """Returns ``(what, fix)`` in the words that both a refusal and ``agentd doctor`` use."""
    return f"{name}: {blocker.what}", f"{name}: {blocker.fix}"


def _unavailable(
    spec: SandboxSpec,
    blockers: list[tuple[str, Blocker]],
    weaker: Backend | None,
    least: IsolationLevel,
) -> Unavailable:
    """Says why no wall will do, and what helps. What walls stronger than namespaces lack is one
    line where they were not asked for, and what several lack alike is said of the first. ``weaker``
    is a wall below the level asked for that would do here."""
    if spec.backend is not None:
        wanted = f"backend {spec.backend} is not usable here"
    else:
        wanted = f"no backend here gives isolation {spec.isolation.label} or stronger"
    stronger = {
        name
        for name, known in backends.BUILTIN.items()
        if known.level > max(spec.isolation, IsolationLevel.NAMESPACE) and spec.backend is None
    }
    first = {blocker.what: name for name, blocker in reversed(blockers)}
    lines = [
        describe(name, blocker)
        for name, blocker in blockers
        if name not in stronger and first[blocker.what] == name
    ]
    if lines and any(name in stronger for name, _ in blockers):
        lines.append(("nor can anything stronger be had (agentd doctor says why)", ""))
    lines = lines or [describe(name, blocker) for name, blocker in blockers]
    fixes = list(dict.fromkeys(fix for _, fix in lines if fix))
    more = "; ".join(fixes) or "install a backend for it; agentd doctor lists them"
    recommended = ""
    if weaker is not None:
        level = weaker.level.label
        recommended = (
            f"--isolation {level} works here; for more, "
            if weaker.level >= least
            else f'{level} works here, where sandbox.minimum = "{level}" allows it; for more, '
        )
    error = Unavailable(
        wanted,
        cause="; ".join(dict.fromkeys(what for what, _ in lines)),
        remediation=recommended + more,
    )
    error.wanted = 0 if spec.backend else spec.isolation
    error.weaker = recommended
    return error


def _weaker(spec: SandboxSpec, load: Loader, allowed: Collection[str]) -> Backend | None:
    """The strongest wall that has a boundary at all, is below what was asked for, and would do for
    ``spec``."""
    if spec.backend is not None:
        return None
    levels = [one for one in IsolationLevel if IsolationLevel.NONE < one < spec.isolation]
    for backend in _of_levels(levels[::-1], load, allowed, []):
        with contextlib.suppress(*backends.anything(backend.name)):
            if backends.probe(backend).usable:
                backend.plan(msgspec.structs.replace(spec, isolation=backend.level))
                return backend
    return None


def _candidates(
    spec: SandboxSpec, load: Loader, allowed: Collection[str], blockers: list[tuple[str, Blocker]]
) -> Iterator[Backend]:
    """The named one; else those of the level that was asked for, and then of each level above."""
    if spec.backend is not None:
        yield load(spec.backend)
        return
    levels = [level for level in IsolationLevel if level >= spec.isolation]
    yield from _of_levels(levels, load, allowed, blockers)


def _of_levels(
    levels: Iterable[IsolationLevel],
    load: Loader,
    allowed: Collection[str],
    blockers: list[tuple[str, Blocker]],
) -> Iterator[Backend]:
    """Level by level, and in each ours before third parties'."""
    others: list[Backend] | None = None
    for level in levels:
        for name, known in backends.BUILTIN.items():
            if known.level == level and (not allowed or name in allowed):
                yield load(name)
        if others is None:
            # Not before ours: to find third parties is to read all packages' metadata.
            others = list(_others(load, allowed, blockers))
        yield from (backend for backend in others if backend.level == level)


def _others(
    load: Loader, allowed: Collection[str], blockers: list[tuple[str, Blocker]]
) -> Iterator[Backend]:
    for name in backends.third_parties():
        if allowed and name not in allowed:
            continue
        try:
            yield load(name)
        except AgentdError as error:
            what = f"{error.message}: {error.cause}" if error.cause else error.message
            blockers.append((name, Blocker(what, error.remediation)))


def _check_image(spec: SandboxSpec, backend: Backend) -> None:
    if spec.image != DEFAULT_IMAGE and not getattr(backend, "images", False):
        raise Refused(
            f"backend {backend.name} takes no image, and {spec.image} was asked for",
            remediation="drop --image, or ask for --isolation namespace",
        )


def _check_writable(spec: SandboxSpec, backend: Backend) -> None:
    if spec.writable and not getattr(backend, "writable", False):
        raise Refused(
            f"backend {backend.name} gives no writable root",
            remediation="drop --writable, or ask for --isolation namespace",
        )


def _check_runtime(spec: SandboxSpec, backend: Backend) -> None:
    if spec.runtime is not None and spec.runtime not in getattr(backend, "runtimes", ()):
        raise Refused(
            f"backend {backend.name} has no runtime {spec.runtime}",
            remediation=_runtimes_fix(spec.runtime, getattr(backend, "runtimes", ())),
        )


def _runtimes_fix(wanted: str, own: Collection[str]) -> str:
    others = backends.building(wanted)
    if others:
        return f"drop --runtime, or name a backend that has it: {', '.join(others)}"
    if own:
        return f"drop --runtime, or name one of: {', '.join(own)}"
    return "drop --runtime"


def _check_known_runtime(spec: SandboxSpec) -> None:
    """Raises InvalidInput for a runtime that no wall has: said once, not of each wall."""
    if spec.runtime is None or spec.backend is not None or backends.building(spec.runtime):
        return
    known = [runtime for name in backends.names() for runtime in backends.runtimes(name)]
    raise InvalidInput(
        f"unknown runtime {spec.runtime!r}", remediation=f"use one of: {', '.join(known)}"
    )


def _check_volumes(spec: SandboxSpec, backend: Backend) -> None:
    named = [mount.volume for mount in spec.mounts if mount.volume]
    if named and not getattr(backend, "volumes", False):
        raise Refused(
            f"backend {backend.name} takes no volume, and {named[0]} was asked for",
            remediation="drop --volume, or ask for --isolation namespace",
        )


def _check_network(spec: SandboxSpec, backend: Backend) -> None:
    """A wall that knows nothing of rules would give the host's network, or say that it gave one."""
    if spec.net not in ("none", "host") and NETWORK.name not in getattr(backend, "abilities", ()):
        raise incapable(backend.name, NETWORK, "restrict the network of")
    if backend.level is IsolationLevel.NONE and _has_budget(spec):
        raise _boundless()  # it has the host's network, whatever was asked for


def _too_weak(spec: SandboxSpec, backend: Backend) -> Refused:
    return Refused(
        f"backend {backend.name} gives isolation {backend.level.label}, "
        f"less than the {spec.isolation.label} asked for",
        remediation=f"drop --backend {backend.name}, or ask for --isolation {backend.level.label} "
        "where neither a configuration nor a policy wants more",
    )


def _as_blocker(refusal: Refused) -> Blocker:
    what = f"{refusal.message}: {refusal.cause}" if refusal.cause else refusal.message
    return Blocker(what, refusal.remediation)
