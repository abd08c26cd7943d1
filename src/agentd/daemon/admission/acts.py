"""Acts without a call: the operations of REST and the SDK, in capabilities' words.

A policy says "shell.exec.v1", and means a command however it was asked for.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from agentd.daemon.admission.act import Act, Place, wanted
from agentd.model import context
from agentd.model.capability import Needs
from agentd.model.egress import RESTRICTED
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


def command(
    who: Principal, handle: SandboxHandle, request: ExecRequest, labels: Mapping[str, str]
) -> Act:
    """``request`` as the sandbox completed it; what it reads is told by its end alone."""
    return command_at(who, Place.of(handle, labels), request)


def command_at(who: Principal, place: Place, request: ExecRequest) -> Act:
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


def creation(who: Principal, spec: SandboxSpec, labels: Mapping[str, str]) -> Act:
    limits = msgspec.structs.asdict(spec.limits)
    parameters = {name: value for name, value in limits.items() if value is not None}
    parameters |= {
        "isolation": spec.isolation.label,
        "backend": spec.backend,
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
