"""The cheapest wall that satisfies a spec, or a refusal with every blocker and its fix."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from agentd.model.availability import Blocker
from agentd.model.errors import Refused, Unavailable
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.sandbox import backends
from agentd.sandbox.ports import Backend, Plan


class Choice(NamedTuple):
    backend: Backend
    plan: Plan


# Gives the one backend object of a name; the caller owns it.
Loader = Callable[[str], Backend]


def choose(spec: SandboxSpec, load: Loader) -> Choice:
    """Try the walls that may do, weakest first; the first usable one that can plan ``spec`` wins.

    Raises Unavailable when none does, Refused when the named backend is too weak, InvalidInput
    when the spec itself is wrong.
    """
    blockers: list[tuple[str, Blocker]] = []
    for name in _candidates(spec):
        backend = load(name)
        if backend.level < spec.isolation:
            if spec.backend is not None:
                raise _too_weak(spec, backend)
            continue
        availability = backend.probe()
        if not availability.usable:
            blockers += [(name, blocker) for blocker in availability.blockers]
            continue
        try:
            _check_image(spec, backend)
            return Choice(backend, backend.plan(spec))
        except Refused as refusal:
            if spec.backend is not None:
                raise
            blockers.append((name, _as_blocker(refusal)))
    raise unavailable(spec, blockers)


def describe(name: str, blocker: Blocker) -> tuple[str, str]:
    """``(what, fix)`` in the words that both a refusal and ``agentd doctor`` use."""
    return f"{name}: {blocker.what}", f"{name}: {blocker.fix}"


def unavailable(spec: SandboxSpec, blockers: list[tuple[str, Blocker]]) -> Unavailable:
    wanted = (
        f"backend {spec.backend} is not usable here"
        if spec.backend is not None
        else f"no backend here gives isolation {spec.isolation.label} or stronger"
    )
    lines = [describe(name, blocker) for name, blocker in blockers]
    return Unavailable(
        wanted,
        cause="; ".join(what for what, _ in lines),
        remediation="; ".join(fix for _, fix in lines if fix)
        or "install a backend for it; agentd doctor lists them",
    )


def _candidates(spec: SandboxSpec) -> Iterator[str]:
    if spec.backend is not None:
        yield spec.backend
        return
    for name, known in backends.BUILTIN.items():
        if known.level >= spec.isolation:
            yield name
    # Only when nothing of ours will do: finding third parties reads all package metadata.
    yield from (name for name in backends.names() if name not in backends.BUILTIN)


def _check_image(spec: SandboxSpec, backend: Backend) -> None:
    if spec.image != DEFAULT_IMAGE and backend.level < IsolationLevel.MICROVM:
        raise Refused(
            f"backend {backend.name} boots no image, and {spec.image} was asked for",
            remediation="drop --image, or ask for --isolation microvm",
        )


def _too_weak(spec: SandboxSpec, backend: Backend) -> Refused:
    return Refused(
        f"backend {backend.name} gives isolation {backend.level.label}, "
        f"less than the {spec.isolation.label} asked for",
        remediation=f"drop --backend {backend.name}, or ask for --isolation {backend.level.label}",
    )


def _as_blocker(refusal: Refused) -> Blocker:
    what = f"{refusal.message}: {refusal.cause}" if refusal.cause else refusal.message
    return Blocker(what, refusal.remediation)
