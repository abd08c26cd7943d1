"""Templates of the configuration: what they say where a request says nothing."""

from collections.abc import Mapping

import msgspec

from agentd.daemon.config.schema import Config, TemplateSettings
from agentd.model.api import SandboxBody
from agentd.model.egress import network
from agentd.model.errors import InvalidInput, NotFound
from agentd.model.limits import Limits
from agentd.model.packages import packages_of
from agentd.model.secret import SecretOption, asked_secrets, opened
from agentd.model.template import TemplateView
from agentd.model.typed import like

# What a template says of these holds: who judges a request by its name knows what that means.
FIXED = ("image", "isolation", "backend", "runtime", "net", "user", "writable")
_LIMITS = tuple(field.name for field in msgspec.structs.fields(Limits))
_USUAL = SandboxBody()


def find(config: Config, name: str) -> TemplateSettings:
    """Find a template by its name. Raises NotFound."""
    for template in config.template:
        if template.name == name:
            return template
    names = ", ".join(template.name for template in config.template)
    raise NotFound(
        f"there is no template {name[:64]!r}",
        remediation=f"use one of: {names}" if names else "add a [[template]] to the configuration",
    )


def views(config: Config, pools: Mapping[str, int]) -> tuple[TemplateView, ...]:
    """Describe each, in the order of the configuration; ``pools`` has how many stand ready, by the
    names of ``Pools.sizes``."""
    limits = [msgspec.structs.asdict(template.limits()) for template in config.template]
    return tuple(
        like(
            TemplateView,
            template,
            name=str(template.name),
            limits={name: value for name, value in said.items() if value is not None},
            env=tuple(template.env),
            ready_timeout=float(template.ready_timeout),
            ttl=float(template.ttl),
            standing=pools.get(f"template/{template.name}", 0),
        )
        for template, said in zip(config.template, limits, strict=True)
    )


def completed(body: SandboxBody, config: Config) -> SandboxBody:
    """Return ``body`` with what its template says, where it has one: variables and limits of its
    own come first. Raises NotFound, and InvalidInput for what is the template's to say."""
    if body.template is None:
        return body
    if body.snapshot is not None:
        raise InvalidInput(
            "a sandbox from a snapshot is what that was taken of, and of no template",
            remediation="leave template out, or snapshot",
        )
    template = find(config, body.template)
    found: dict[str, object] = {"env": {**template.env, **body.env}}
    for name in FIXED:
        asked, said = getattr(body, name), getattr(template, name)
        if said is None:  # it leaves that to the request
            continue
        if asked not in (getattr(_USUAL, name), said):
            told = asked if isinstance(asked, str) or name != "net" else ",".join(asked)
            raise InvalidInput(
                f"the template {template.name} has {name} {said}, and not {told}",
                remediation=f"leave {name} out, or the template",
            )
        found[name] = str(said) if isinstance(said, str) else said
    if template.net is not None:
        _check_secrets(template, body.secrets)
    if template.packages:
        found["packages"] = _packages(template, packages_of(body.packages))
    limits = msgspec.structs.asdict(template.limits())
    for name in _LIMITS:
        if getattr(body, name) is None:
            found[name] = limits[name]
    return msgspec.structs.replace(body, **found)


def _check_secrets(template: TemplateSettings, secrets: SecretOption) -> None:
    """A secret opens no host in a network that is the template's to say. Raises InvalidInput."""
    own = network(template.net)
    for asked in asked_secrets(secrets):
        if opened(*own, [asked.binding]) != own:
            raise InvalidInput(
                f"the template {template.name} has a network without {asked.binding.hosts[0]}, "
                f"where secret {asked.binding.name} is used",
                remediation="have its net name each host of the secret, or leave the template out",
            )


def _packages(template: TemplateSettings, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Raises InvalidInput where a request says otherwise."""
    said = packages_of(template.packages)
    if asked not in ((), said):
        raise InvalidInput(
            f"the template {template.name} has packages {','.join(said)}, "
            f"and not {','.join(asked)}",
            remediation="leave packages out, or the template",
        )
    return said
