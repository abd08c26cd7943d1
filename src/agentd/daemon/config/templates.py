"""What must hold of each [[template]]: a request that names it could not be served otherwise."""

from collections.abc import Iterator
from typing import cast

import msgspec

from agentd.daemon.config.lines import Found, Path
from agentd.daemon.config.schema import Config, TemplateSettings
from agentd.model import options
from agentd.model.egress import RESTRICTED
from agentd.model.errors import InvalidInput
from agentd.model.limits import Limits
from agentd.model.spec import SandboxSpec

#: Each has a thread that keeps its sandboxes ready.
MAX_TEMPLATES = 64
NOBODY = "no request could be given one of them"


def broken(config: Config) -> Iterator[Found]:
    if len(config.template) > MAX_TEMPLATES:
        yield ("template",), f"{len(config.template)} are over {MAX_TEMPLATES}", "drop some of them"
    names = [template.name for template in config.template]
    for n, template in enumerate(config.template):
        path: Path = ("template", n)
        if template.name in names[:n]:
            yield (*path, "name"), f"{template.name!r} is there twice", "drop one of them"
        try:
            spec = spec_of(template)
        except InvalidInput as error:
            where = (*path, *_culprit(template))
            yield where, str(error), "correct it: a request could not ask for that either"
            continue
        yield from _allowed(config, template, spec, path)
        yield from _commands(template, path)


def _culprit(template: TemplateSettings) -> Path:
    """Return which key is the first that is wrong by itself, beside the network that it is for."""
    one: dict[str, object] = {"net": template.net}
    for name, value in (one | {**_asked(template)}).items():
        try:
            options.sandbox_spec(**cast("options.SandboxOptions", one | {name: value}))
        except InvalidInput:
            return (name,)
    return ()


def spec_of(template: TemplateSettings) -> SandboxSpec:
    """Return what it asks for. Raises InvalidInput."""
    return options.sandbox_spec(**_asked(template))


def _asked(template: TemplateSettings) -> options.SandboxOptions:
    limits = {n: v for n, v in msgspec.structs.asdict(template.limits()).items() if v is not None}
    walls = ("image", "isolation", "backend", "runtime", "net", "packages")
    names = (*walls, "user", "writable", "env")
    return cast(
        "options.SandboxOptions", {name: getattr(template, name) for name in names} | limits
    )


def _allowed(
    config: Config, template: TemplateSettings, spec: SandboxSpec, path: Path
) -> Iterator[Found]:
    allowed = config.sandbox.backends
    if template.isolation is not None and spec.isolation < config.sandbox.level:
        least = f"is less than sandbox.minimum, {config.sandbox.minimum}"
        yield (*path, "isolation"), least, NOBODY
    if template.backend is not None and allowed and template.backend not in allowed:
        named = f"{template.backend} is not among sandbox.backends"
        yield (*path, "backend"), named, NOBODY
    if spec.net not in config.sandbox.networks:
        yield (*path, "net"), f"{spec.net} is not among sandbox.networks", NOBODY
    if spec.packages and RESTRICTED not in config.sandbox.networks:
        by = f"are fetched by a network, and {RESTRICTED} is not among sandbox.networks"
        yield (*path, "packages"), by, NOBODY
    for name in msgspec.structs.fields(Limits):
        value, bound = getattr(template, name.name), getattr(config.limits.max, name.name)
        if value is not None and bound is not None and value > bound:
            fix = "lower it, or raise the other"
            yield (*path, name.name), f"is more than limits.max.{name.name}", fix


def _commands(template: TemplateSettings, path: Path) -> Iterator[Found]:
    if template.min > template.max:
        yield (*path, "min"), "is more than max", "lower it, or raise max"
    if template.ready and not template.ready_timeout:
        yield (*path, "ready_timeout"), "nothing is ready at once", "give a second or more"
