"""What somebody asks for, whatever way it came in: one value for policy, audit and receipt."""

from collections.abc import Mapping
from typing import Any

import msgspec

from agentd.daemon.admission.cut import cut
from agentd.model import context
from agentd.model.capability import Needs
from agentd.model.decision import Asked
from agentd.model.isolation import IsolationLevel
from agentd.model.principal import Principal
from agentd.model.spec import SandboxSpec
from agentd.sandbox.handle import SandboxHandle


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
    """``name`` is a capability's, or that of an operation on sandboxes: ``sandbox.create.v1``.

    ``signer`` is the key that signed the request, ``bundle`` the policy that the caller expects;
    each "" where there is none. ``executes``: its END is on disk before its caller is told.
    ``receipt``: it has one; what has none is not synced. ``lasts``: a loss of power does not undo
    it, and so its admission is on disk before it is done.
    """

    who: Principal
    name: str
    parameters: Mapping[str, Any]
    place: Place
    needs: Needs = Needs()
    request: str = ""
    signer: str = ""
    bundle: str = ""
    via: str = ""
    executes: bool = False
    receipt: bool = True
    lasts: bool = True

    @property
    def id(self) -> str:
        return self.request or context.current()


def asked(act: Act, now: float) -> Asked:
    """The document that policies decide on; variables of an environment by name only, and long
    texts as ``cut`` has them."""
    who, place = act.who, act.place
    return Asked(
        principal={"name": who.name, "scopes": sorted(who.scopes), "via": who.via},
        capability={"name": act.name, "needs": act.needs.told()},
        parameters=cut(_without_values(act.parameters)),
        sandbox=_sandbox(place),
        request={"id": act.id, "time": now, "signer": act.signer, "via": act.via},
    )


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
    """What is asked of a sandbox, in the words that every document about one has for it."""
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


def _without_values(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """A policy may be shown to people, and its input logged: it gets no variable's value."""
    env = parameters.get("env")
    return {**parameters, "env": sorted(env)} if isinstance(env, Mapping) else parameters
