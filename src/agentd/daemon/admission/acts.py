"""What somebody asks for, whatever way it came in: one value for policy, audit and receipt.

The operations of REST and the SDK are acts in capabilities' words: a policy says "shell.exec.v1",
and means a command however it was asked for.
"""

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from hashlib import sha256
from typing import Any

import msgspec

from agentd.model import context
from agentd.model.capability import Needs
from agentd.model.decision import Asked
from agentd.model.egress import RESTRICTED
from agentd.model.isolation import IsolationLevel
from agentd.model.principal import Principal
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.handle import SandboxHandle

SHELL = "shell.exec.v1"
CREATE = "sandbox.create.v1"
FORK = "sandbox.fork.v1"
SNAPSHOT = "sandbox.snapshot.v1"
PORT = "sandbox.port.v1"
NETWORK = "sandbox.network.v1"
#: What a program in a sandbox asks for by dialling, where a rule has somebody asked.
CONNECT = "network.connect"
# Not in the registry: they have no call.
OPERATIONS = (CREATE, FORK, SNAPSHOT, PORT, NETWORK, CONNECT)
_BY_DIALLING = "sandbox"  # in place of a way that somebody was authenticated
READ, WRITE, LIST = "fs.read.v1", "fs.write.v1", "fs.list.v1"
_WRITES = Needs(writes=True)
# Texts of a request that are longer are seen by policies as a digest, a length and how they begin.
MAX_TEXT = 16 << 10  # bytes of UTF-8; a path has 4 KiB at most
_NEVER_CUT = MAX_TEXT // 4  # characters: in UTF-8 one has four bytes at most
PREFIX = 1 << 10
_MAX_DEPTH = 64


class Place(msgspec.Struct, frozen=True):
    """The sandbox in which an act is to happen. ``id``, ``level`` and ``backend`` are of a sandbox
    that is there; of one that is yet to be made ``id`` is "", and ``level`` the least that is asked
    for."""

    spec: SandboxSpec
    level: IsolationLevel
    id: str = ""
    backend: str = ""
    labels: Mapping[str, str] = {}

    @classmethod
    def new(cls, spec: SandboxSpec, labels: Mapping[str, str] | None = None) -> "Place":
        return cls(spec, spec.isolation, backend=spec.backend or "", labels=labels or {})

    @classmethod
    def of(cls, handle: SandboxHandle, labels: Mapping[str, str] | None = None) -> "Place":
        return cls(handle.spec, handle.level, handle.id, handle.backend, labels or {})


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """Says what is asked: ``name`` is a capability's, or that of an operation on sandboxes, as
    ``sandbox.create.v1``.

    ``signer`` is the key that signed the request, ``bundle`` the policy that the caller expects;
    each "" where there is none. ``executes``: its END is on disk before its caller is told.
    ``receipt``: it has one; what has none is not synced. ``lasts``: a loss of power does not undo
    it, and so its admission is on disk before it is done. ``how`` is what was asked for and no
    policy is asked about: what is done with a path.
    """

    who: Principal
    name: str
    parameters: Mapping[str, Any]
    place: Place
    needs: Needs = Needs()
    request: str
    signer: str = ""
    bundle: str = ""
    via: str = ""
    executes: bool = False
    receipt: bool = True
    lasts: bool = True
    how: Mapping[str, Any] = {}


def command(who: Principal, place: Place, request: ExecRequest) -> Act:
    """Return the act of ``request``, completed by the sandbox; only its end tells what it reads."""
    parameters: dict[str, Any] = {"command": request.argv[0], "args": list(request.argv[1:])}
    parameters |= {"cwd": request.cwd, "env": dict(request.env)}
    if request.timeout is not None:
        parameters["timeout_ms"] = round(request.timeout * 1000)
    return Act(
        who=who,
        name=SHELL,
        parameters=parameters,
        place=place,
        needs=shell_needs(),
        request=context.current() or context.new_id(),
        executes=True,
    )


def creation(
    who: Principal, spec: SandboxSpec, labels: Mapping[str, str], snapshot: str = ""
) -> Act:
    """Describe the making of a sandbox; ``snapshot`` is the id of what it is made of."""
    limits = msgspec.structs.asdict(spec.limits)
    parameters = {name: value for name, value in limits.items() if value is not None}
    parameters |= {
        "isolation": spec.isolation.label,
        "backend": spec.backend,
        "snapshot": snapshot,
        **wanted(spec),
        "mounts": [f"{m.named}:{m.target}:{m.mode}" for m in spec.mounts],
    }
    return _act(who, CREATE, parameters, Place.new(spec, labels))


def beside(act: Act, also: Sequence[Act]) -> Sequence[Act]:
    """Add to what is done beside ``act`` the making of the sandbox that fetches the packages of one
    that is to be made: it has a network, whatever that one has."""
    place, asked = act.place, act.place.spec
    if place.id or not asked.packages:
        return also
    spec = SandboxSpec(net=RESTRICTED, egress=asked.index_egress, packages=asked.packages)
    made = creation(act.who, spec, place.labels)
    return (*also, msgspec.structs.replace(made, request=act.request, via=act.via))


def operation(
    who: Principal, name: str, handle: SandboxHandle, labels: Mapping[str, str], **parameters: Any
) -> Act:
    """Return the act on a sandbox that is there, or on its files."""
    return operation_at(who, name, Place.of(handle, labels), parameters)


def connection(
    owner: str, handle: SandboxHandle, labels: Mapping[str, str], host: str, port: int, rule: str
) -> Act:
    """Return what a program in a sandbox of ``owner`` asks for, by a rule that they had the scope
    to ask for as it was made: nobody is there who could show more."""
    who = Principal(owner, frozenset({"egress"}), _BY_DIALLING)
    parameters = {"host": host, "port": port, "rule": rule}
    made = operation_at(who, CONNECT, Place.of(handle, labels), parameters)
    return msgspec.structs.replace(made, receipt=False, lasts=False)


def operation_at(who: Principal, name: str, place: Place, parameters: Mapping[str, Any]) -> Act:
    needs = _WRITES if name == WRITE else Needs()
    return _act(who, name, parameters, place, needs)


@cache
def shell_needs() -> Needs:
    from agentd.capability import registry

    return registry.Registry().get(SHELL).about.needs


def _act(
    who: Principal,
    name: str,
    parameters: Mapping[str, Any],
    place: Place,
    needs: Needs | None = None,
) -> Act:
    request = context.current() or context.new_id()
    return Act(
        who=who,
        name=name,
        parameters=parameters,
        place=place,
        needs=needs or Needs(),
        request=request,
        executes=name == WRITE,
        receipt=name not in (READ, LIST, PORT),
        lasts=name not in (READ, LIST),
    )


# --- as policies see it ---


def asked(act: Act, now: float) -> Asked:
    """Return the document that policies decide on; long texts as ``cut`` has them, and variables of
    an environment by name only: a policy may be shown to people, and its input logged. The time
    is in whole seconds: the engine's functions of time refuse a number with a fraction."""
    who, place, parameters = act.who, act.place, act.parameters
    if isinstance(env := parameters.get("env"), Mapping):
        parameters = {**parameters, "env": sorted(env)}
    return Asked(
        principal={"name": who.name, "scopes": sorted(who.scopes), "via": who.via},
        capability={"name": act.name, "needs": _needs(act.needs)},
        parameters=cut(parameters),
        sandbox=_sandbox(place),
        request={"id": act.request, "time": int(now), "signer": act.signer, "via": act.via},
    )


@lru_cache(64)
def _needs(needs: Needs) -> Mapping[str, Any]:
    """Tell them once: those of a capability are the same for each call."""
    return needs.told()


def _sandbox(place: Place) -> dict[str, Any]:
    spec = place.spec
    return {
        "id": place.id,
        "level": place.level.label,
        "backend": place.backend,
        **wanted(spec),
        "env": sorted(spec.env),
        "mounts": [
            {"source": m.named, "target": m.target, "mode": str(m.mode)} for m in spec.mounts
        ],
        "limits": msgspec.structs.asdict(spec.limits),
        "labels": dict(place.labels),
    }


def wanted(spec: SandboxSpec) -> dict[str, Any]:
    """Return what is asked of a sandbox, in the words that every document about one has for it."""
    return {
        "runtime": spec.runtime,
        "image": spec.image,
        "image_digest": spec.image_digest,
        "template": spec.template,
        "net": spec.net,
        "egress": list(spec.egress),
        "secrets": [secret.told() for secret in spec.secrets],
        "packages": list(spec.packages),
        "user": spec.user,
        "writable": spec.writable,
    }


def cut(value: Any, depth: int = _MAX_DEPTH) -> Any:
    """Return ``value`` with its texts cut to MAX_TEXT; one that has none longer as it is.

    A policy is asked in a fraction of a second about what may have 8 MiB. What stands in the place
    of a long text is no text, so that a rule that reads it as one fails, and the request with it:
    padding hides nothing from a rule that looks for something.
    """
    if isinstance(value, str):
        return value if len(value) <= _NEVER_CUT else _cut_text(value)
    if not depth:
        return value  # too deep for a policy, which will say so
    # Most are short texts: those are taken without a call for each.
    if isinstance(value, Mapping):
        return {
            name: v if type(v) is str and len(v) <= _NEVER_CUT else cut(v, depth - 1)
            for name, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [v if type(v) is str and len(v) <= _NEVER_CUT else cut(v, depth - 1) for v in value]
    return value


def _cut_text(text: str) -> Any:
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= MAX_TEXT:
        return text
    return {
        "truncated": True,
        "length": len(data),
        "sha256": sha256(data).hexdigest(),
        "prefix": data[:PREFIX].decode("utf-8", "ignore"),
    }
