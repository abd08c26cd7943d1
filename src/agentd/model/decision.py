"""What a policy is asked, and what it answers."""

from collections.abc import Mapping
from typing import Any

import msgspec

from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits


class Asked(msgspec.Struct, frozen=True):
    """The document that policies see as ``input``; plain JSON values, nothing secret.

    principal: {name, scopes, via}
    capability: {name, needs: {level, network, writes, sandbox}}
    parameters: as the caller gave them, already checked against the schema
    sandbox: {id (or ""), level, backend, image, net, egress (its rules, where it is
        restricted), user, env (names only), mounts: [{source, target, mode}],
        limits: {memory, cpus, pids, disk, open_files, output, timeout,
        net_bytes, net_rate}, labels}
    request: {id, time (seconds since 1970), signer (key id, or ""), via ("http", "cli", ...)}
    """

    principal: Mapping[str, Any]
    capability: Mapping[str, Any]
    parameters: Mapping[str, Any]
    sandbox: Mapping[str, Any]
    request: Mapping[str, Any]


class Obligations(msgspec.Struct, frozen=True):
    """The obligations of an act that is allowed; the pipeline enforces each or refuses.

    ``limits`` are the most it may have: lower ones stay.
    """

    level: IsolationLevel | None = None  # the least wall
    limits: Limits = Limits()
    no_network: bool = False
    approve: bool = False  # a principal with the scope "approve" decides first


class Decision(msgspec.Struct, frozen=True):
    """``undecided`` says why there is no decision (an error, an undefined rule): then ``allow`` is
    False, and that is another answer than a denial. ``bundle`` is "sha256:..." of the policy."""

    allow: bool
    reasons: tuple[str, ...] = ()
    obligations: Obligations = Obligations()
    bundle: str = ""
    undecided: str = ""
