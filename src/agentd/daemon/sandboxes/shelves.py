"""What the pool keeps ready, as the configuration has it."""

import contextlib

from agentd.daemon.admission.gate import Gate
from agentd.daemon.config import Config
from agentd.daemon.sandboxes import bodies
from agentd.model.errors import AgentdError
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.image_root import resolved
from agentd.sandbox.pool import ShelfSpec


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
