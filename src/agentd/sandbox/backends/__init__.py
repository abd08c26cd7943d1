"""The walls we know: one table of names, imported late; third parties join by entry point."""

from typing import TYPE_CHECKING, Any, NamedTuple

from agentd.model.errors import BackendLost, InvalidInput, Unavailable
from agentd.model.isolation import IsolationLevel

if TYPE_CHECKING:
    from agentd.model.availability import Availability, Blocker
    from agentd.model.spec import SandboxSpec
    from agentd.sandbox.ports import Backend, Plan

ENTRY_POINTS = "agentd.backends"
#: What is caught of a third party's, which may raise anything: SystemExit would end us, and as 0
#: pass for success.
ANYTHING = (Exception, SystemExit)


def anything(name: str) -> tuple[type[BaseException], ...]:
    """Return what is caught of a backend, whatever it is asked: of ours a SystemExit is none of its
    own but a signal handler's, of whoever embeds us."""
    return (Exception,) if name in BUILTIN else ANYTHING


def is_others(backend: "Backend") -> bool:
    """Return whether what is called is a third party's. Not where that is in a supervisor: there is
    a link of ours in between, and the supervisor says itself what is theirs."""
    return backend.name not in BUILTIN and not getattr(backend, "supervised", False)


class Known(NamedTuple):
    """A built-in backend, and where it is; its level stands here so that choosing imports only what
    it tries."""

    level: IsolationLevel
    where: str
    begin: str = ""  # what of it is slow to start and can be started ahead, without an import


# Cheapest first within a level.
BUILTIN: dict[str, Known] = {
    "host": Known(IsolationLevel.NONE, "agentd.sandbox.backends.process:HostBackend"),
    "landlock": Known(IsolationLevel.PROCESS, "agentd.sandbox.backends.process:LandlockBackend"),
    "linux": Known(
        IsolationLevel.NAMESPACE,
        "agentd.sandbox.backends.linux.backend:LinuxBackend",
        "agentd.sandbox.backends.linux.nursery:begin",
    ),
    "oci": Known(IsolationLevel.NAMESPACE, "agentd.sandbox.backends.oci.backend:OciBackend"),
    "gvisor": Known(
        IsolationLevel.USERSPACE_KERNEL, "agentd.sandbox.backends.gvisor.backend:GvisorBackend"
    ),
    "firecracker": Known(
        IsolationLevel.MICROVM, "agentd.sandbox.backends.firecracker.backend:FirecrackerBackend"
    ),
    "qemu": Known(IsolationLevel.MICROVM, "agentd.sandbox.backends.qemu.backend:QemuBackend"),
}


def names() -> tuple[str, ...]:
    """List every backend's name: ours, weakest first, then third parties' in order."""
    return (*BUILTIN, *third_parties())


def third_parties() -> tuple[str, ...]:
    """List them in order. One that is called as one of ours is left out: ours is taken."""
    return tuple(name for name in sorted(_third_parties()) if name not in BUILTIN)


def begin(name: str, net: str) -> None:
    """Start the slow part of one of our backends, for sandboxes with that kind of network, ahead of
    ``load``; returns at once."""
    if BUILTIN[name].begin:
        _attribute(BUILTIN[name].begin)(net)


def load(name: str) -> "Backend":
    """Makes a fresh backend. Raises InvalidInput for a name nobody has, Unavailable for a third
    party's that cannot be loaded."""
    if name in BUILTIN:
        ours: Backend = _attribute(BUILTIN[name].where)()
        return ours
    where = _third_parties().get(name)
    if where is None:
        raise InvalidInput(
            f"unknown backend {name!r}", remediation=f"use one of: {', '.join(names())}"
        )
    try:
        theirs: Backend = _attribute(where)()
        if theirs.name != name or not isinstance(theirs.level, IsolationLevel):
            raise TypeError(f"{where} is no backend of the name {name!r} with a level")
    except ANYTHING as error:
        blocker = broken("loaded", error)
        raise Unavailable(f"backend {name} {blocker.what}", remediation=blocker.fix) from error
    return theirs


def probe(backend: "Backend") -> "Availability":
    """Return whether it works here. A third party's may raise or return anything: then it does not,
    and others are tried."""
    from agentd.model.availability import Availability

    try:
        found = backend.probe()
        if not isinstance(found, Availability):
            raise TypeError(f"it returned {type(found).__name__}, and no Availability")
    except ANYTHING as error:
        # What a supervisor answers is of the backend there; that it is gone is not.
        if backend.name in BUILTIN or isinstance(error, BackendLost):
            raise
        return Availability(False, (broken("probed", error),))
    return found


def examined(backend: "Backend") -> "Availability":
    """As ``probe``, for who only looks: what one of ours raises is a reason why it does not."""
    from agentd.model.availability import Availability, Blocker
    from agentd.model.errors import AgentdError

    try:
        return probe(backend)
    except (AgentdError, OSError) as error:
        return Availability(False, (Blocker(str(error), "see the message; then try again"),))


def plan(backend: "Backend", spec: "SandboxSpec") -> "Plan":
    """Return its plan. Raises what it raises, TypeError for a third party's that returns none."""
    made = backend.plan(spec)
    if made is None:
        raise TypeError("plan() returned None, and no plan")
    return made


def broken(what: str, error: BaseException) -> "Blocker":
    """Return why a third party's backend is not usable."""
    # Late: what a wall's own processes import has no msgspec.
    from agentd.model.availability import Blocker

    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Blocker(f"cannot be {what}: {said}", "fix or uninstall the package it is in")


def level(name: str) -> IsolationLevel:
    """Return its level, without an import for one of ours. Raises InvalidInput for another name."""
    return BUILTIN[name].level if name in BUILTIN else load(name).level


def images(name: str) -> bool:
    """Return whether it boots the image that a spec names; one that does not say so boots none."""
    return bool(getattr(_about(name), "images", False))


def writable(name: str) -> bool:
    """Return whether it gives a root that can be written to; who does not say so gives none."""
    return bool(getattr(_about(name), "writable", False))


def runtimes(name: str) -> tuple[str, ...]:
    """Return the OCI runtimes that it builds walls by; none where it does not say so."""
    return tuple(getattr(_about(name), "runtimes", ()))


def building(runtime: str) -> tuple[str, ...]:
    """Return the backends that build walls by this OCI runtime."""
    return tuple(name for name in names() if runtime in runtimes(name))


def volumes(name: str) -> bool:
    """Return whether its sandboxes can have named volumes; who does not say so takes none."""
    return bool(getattr(_about(name), "volumes", False))


def abilities(name: str) -> frozenset[str]:
    """Return what its sandboxes can do, some of them at least; see ``agentd.sandbox.abilities``."""
    found = _about(name)
    forks = {"fork"} if hasattr(found, "restore") else set()
    return frozenset(getattr(found, "abilities", ())) | forks


def fidelity(name: str) -> str:
    """Return what snapshots of its sandboxes keep, "memory" or "files"; "" for one that takes none,
    or does not say so before there is a sandbox."""
    return str(getattr(_about(name), "fidelity", ""))


def able(ability: str) -> tuple[str, ...]:
    """Returns the backends whose sandboxes have an ability, some of them at least."""
    return tuple(name for name in names() if ability in abilities(name))


def _about(name: str) -> object:
    """Return what tells of a backend: the class of one of ours, a third party's itself, for a
    function may make it; None where that cannot be loaded."""
    try:
        return _attribute(BUILTIN[name].where) if name in BUILTIN else load(name)
    except Unavailable:
        return None


def _attribute(where: str) -> Any:
    from importlib import import_module

    module, _, attribute = where.partition(":")
    return getattr(import_module(module), attribute)


def _third_parties() -> dict[str, str]:
    # Reading every installed package's metadata costs 10 ms and more: never on the common path.
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
