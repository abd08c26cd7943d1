"""What is kept ready, as the configuration has it."""

import contextlib

from agentd.daemon.admission.gate import Gate
from agentd.daemon.config import Config
from agentd.daemon.config.schema import TemplateSettings
from agentd.daemon.sandboxes import bodies
from agentd.image.model import ImageError
from agentd.image.oci.store import OciStore
from agentd.model.api import SandboxBody
from agentd.model.errors import AgentdError
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.principal import SCOPES, Principal
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.sandbox.backends.image_root import resolved
from agentd.sandbox.pool import ShelfSpec

_ANYBODY = Principal("anybody", frozenset(SCOPES), "key")


def shelves(config: Config, gate: Gate) -> list[ShelfSpec]:
    """Return the pool's shelves: what a request that asks for nothing special comes to, behind
    bounds and policy."""
    made = []
    for pool in config.pool:
        spec = SandboxSpec(
            isolation=IsolationLevel.parse(pool.isolation),
            backend=pool.backend,
            runtime=config.sandbox.runtime_of(pool.backend),
            image=pool.image,
            limits=bodies.bounded(Limits(), config.limits),
            private_programs=config.sandbox.private_programs,
            configuration=config.sandbox.configuration,
        )
        with contextlib.suppress(AgentdError):  # its image cannot be used: the pool says so
            spec = resolved(spec)
        made.append(ShelfSpec(gate.ahead(spec), pool.min, pool.max, float(pool.ttl)))
    return made


def of_template(template: TemplateSettings, config: Config, gate: Gate) -> ShelfSpec:
    """Return the shelf of what a request comes to that names the template and nothing else.

    Raises what such a request would be told."""
    spec = bodies.sandbox_spec(_ANYBODY, SandboxBody(template=str(template.name)), config)
    return ShelfSpec(gate.ahead(spec), template.min, template.max, float(template.ttl))


def images(config: Config) -> dict[str, str]:
    """Return which image each name means that sandboxes are kept ready of; "" for none."""
    found, store = {}, OciStore()
    names = {pool.image for pool in config.pool} | {one.image for one in config.template}
    for name in names - {DEFAULT_IMAGE}:
        try:
            found[name] = store.digest(name)
        except ImageError:
            found[name] = ""
    return found
