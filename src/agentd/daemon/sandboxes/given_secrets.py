"""The secrets of a sandbox that is to be made: their values, and what stands in for them inside."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec

from agentd.egress.placeholders import placeholder
from agentd.model.errors import InvalidInput, Refused
from agentd.model.secret import (
    MAX_VALUES,
    AskedSecret,
    SecretBinding,
    SecretOption,
    SecretValue,
    asked_secrets,
    check_fits,
    check_variables,
)
from agentd.model.spec import SandboxSpec

#: Gives the value of one that is kept, by its name; raises NotFound.
Stored: TypeAlias = Callable[[str], SecretValue]


def given(
    spec: SandboxSpec, secrets: SecretOption, stored: Stored, another: str = ""
) -> tuple[SandboxSpec, dict[str, SecretValue]]:
    """Return the spec with a placeholder for each of its secrets, which commands have in a variable
    of its name, and their values. ``secrets`` are as they were asked for; ``another`` is whose the
    others of a snapshot are, "" for the caller's. Raises InvalidInput, NotFound, and Refused for
    one of a snapshot that has to be given again."""
    came = {asked.binding.name: asked for asked in asked_secrets(secrets)}
    if another:
        _check_own([b for b in spec.secrets if b.name not in came], another)
    values = {b.name: _value(b, came.get(b.name), stored) for b in spec.secrets}
    if sum(len(value.text) for value in values.values()) > MAX_VALUES:
        raise InvalidInput(
            f"the values of the secrets take more than {MAX_VALUES} bytes together",
            remediation="leave some out",
        )
    bindings = tuple(_standing(binding, values[binding.name]) for binding in spec.secrets)
    check_variables(bindings, spec.env)
    env = {**spec.env, **{binding.name: binding.placeholder for binding in bindings}}
    return msgspec.structs.replace(spec, secrets=bindings, env=env), values


def stored_values(spec: SandboxSpec, stored: Stored, another: str = "") -> dict[str, SecretValue]:
    """Return the values of those that are kept, as they are now. Raises NotFound, and Refused where
    they are ``another`` principal's."""
    if another:
        _check_own(spec.secrets, another)
    return {b.name: stored(b.name) for b in spec.secrets if not b.source}


def takes_stored(spec: SandboxSpec, secrets: SecretOption) -> bool:
    """Return whether ``given`` looks for one that is kept."""
    came = {asked.binding.name for asked in asked_secrets(secrets) if asked.value is not None}
    return any(not b.source and b.name not in came for b in spec.secrets)


def _check_own(bindings: Iterable[SecretBinding], another: str) -> None:
    """What has the secret's name is the caller's own, which whoever wrote what is in there would
    use. Raises Refused."""
    for binding in bindings:
        if not binding.source:
            raise Refused(
                f"secret {binding.name} is {another}'s, and not yours to use",
                remediation="create a sandbox of a snapshot, and give one of yours: "
                f"{binding.name}@{binding.hosts[0]}",
            )


def _value(binding: SecretBinding, asked: AskedSecret | None, stored: Stored) -> SecretValue:
    if asked is not None and asked.source:
        raise InvalidInput(
            f"secret {binding.name} has the source {binding.source}, which is its client's to read",
            remediation='send it as {"name": ..., "hosts": [...], "value": ...}',
        )
    if asked is not None and asked.value is not None:
        return asked.value
    if binding.source:
        raise Refused(
            f"secret {binding.name} came with the request for its first sandbox, and was not kept",
            remediation=f"give it again: {binding.name}=env:{binding.name}@{binding.hosts[0]}",
        )
    return stored(binding.name)


def _standing(binding: SecretBinding, value: SecretValue) -> SecretBinding:
    check_fits(binding, value)
    if binding.placeholder:  # it is in the memory of a snapshot
        return binding
    return msgspec.structs.replace(binding, placeholder=placeholder(value))
