"""What the policy in force would decide on a call that nobody makes: ``agentd policy explain``."""

import os
import time
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from agentd.capability import schema
from agentd.capability.registry import Registry
from agentd.daemon import config
from agentd.daemon.admission import acts
from agentd.daemon.admission.acts import Act, Place, asked
from agentd.daemon.admission.control import POLICY
from agentd.daemon.admission.gate import NO_POLICY
from agentd.daemon.config.schema import ORDINARY
from agentd.daemon.config.values import Bundle
from agentd.model.capability import About, Needs
from agentd.model.decision import Asked
from agentd.model.errors import InvalidInput, NotFound
from agentd.model.principal import SCOPES, Principal
from agentd.model.spec import SandboxSpec
from agentd.policy.engine import Explanation
from agentd.policy.store import PolicyStore

NONE = "none"
_KINDS = {str: "text", bool: "true or false", list: "a list", dict: "an object"}


class Chosen(msgspec.Struct, frozen=True):
    """``bundle`` is "none" where the scopes alone decide; ``said_by`` says where that stands."""

    bundle: str
    sha256: str | None
    said_by: str


class Explained(msgspec.Struct, frozen=True):
    explanation: Explanation
    policy: Chosen
    scopes: tuple[str, ...]  # that were assumed, or told


def explain(
    where: str | None,
    name: str,
    parameters: Mapping[str, Any],
    *,
    principal: str,
    scopes: Sequence[str] | None,
    sandbox: Mapping[str, Any],
) -> Explained:
    """Ask as a call does: parameters are checked and completed, needs are the capability's own.

    ``sandbox`` takes the place of members of a new one without network and mounts.
    """
    held = ORDINARY if scopes is None else tuple(scopes)
    question = _question(name, parameters, principal, held, sandbox)
    chosen = choose(where)
    if chosen.bundle == NONE:
        return Explained(Explanation(NO_POLICY), chosen, held)
    store = PolicyStore(chosen.bundle, sha256=chosen.sha256, workers=1)
    try:
        return Explained(store.explain(question), chosen, held)
    finally:
        store.close()


def choose(where: str | None) -> Chosen:
    """Return what is named, else AGENTD_POLICY's, else the configuration's, whose default is
    permissive.

    Raises InvalidInput for a configuration that is wrong.
    """
    if where is not None:
        return Chosen(where, None, "--bundle")
    if own := os.environ.get(POLICY):
        return Chosen(
            NONE if own == NONE else Bundle.of(own), None, f"{POLICY}, for calls without a daemon,"
        )
    path = config.find(os.environ)
    read = config.read(path)
    policy = read.whole().policy
    source = read.layers.source(("policy", "bundle"))
    said_by = {"default": "the default", "profile": "the profile"}.get(source, source)
    if source.startswith("line "):
        said_by = f"{path}:{source.removeprefix('line ')}"
    return Chosen(str(policy.bundle or NONE), policy.sha256, said_by)


def _question(
    name: str,
    parameters: Mapping[str, Any],
    principal: str,
    scopes: Sequence[str],
    sandbox: Mapping[str, Any],
) -> Asked:
    if unknown := next((scope for scope in scopes if scope not in SCOPES), None):
        raise InvalidInput(
            f"unknown scope {unknown!r}", remediation=f"the scopes are: {', '.join(SCOPES)}"
        )
    needs = Needs()
    if name not in acts.OPERATIONS:
        about = _about(name)
        needs, parameters = about.needs, schema.check(about, parameters)
    spec = SandboxSpec()
    act = Act(
        who=Principal(principal, frozenset(scopes), "key"),
        name=name,
        parameters=parameters,
        place=Place.new(msgspec.structs.replace(spec, isolation=max(spec.isolation, needs.level))),
        needs=needs,
        request="explain",
        via="cli",
    )
    question = asked(act, time.time())
    _check_sandbox(sandbox, question.sandbox)
    return msgspec.structs.replace(question, sandbox={**question.sandbox, **sandbox})


def _check_sandbox(given: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Raises InvalidInput for what no sandbox has in a question: no rule would look at it."""
    for name, value in given.items():
        if name not in usual:
            raise InvalidInput(
                f"a policy sees no {name[:64]!r} of a sandbox",
                remediation=f"it sees: {', '.join(usual)}",
            )
        kind = str if usual[name] is None else type(usual[name])
        if not isinstance(value, kind) and (value, usual[name]) != (None, None):
            raise InvalidInput(
                f"{name!r} of a sandbox is {str(value)[:64]!r}, and to a policy it is "
                f"{_KINDS[kind]}",
                remediation=f"give {_KINDS[kind]}",
            )


def _about(name: str) -> About:
    try:
        return Registry().get(name).about
    except NotFound as error:
        near = get_close_matches(name, acts.OPERATIONS, 1)
        if near:
            raise NotFound(error.message, remediation=f"did you mean {near[0]}?") from error
        raise
