"""Every attack and every check, in the order in which they are run."""

from agentd.selftest.attack import Attack
from agentd.selftest.attacks import (
    agent,
    checks,
    files,
    kernel,
    limits,
    network,
    privileges,
    processes,
    restricted,
)

ATTACKS: tuple[Attack, ...] = (
    *checks.CHECKS,
    *files.ATTACKS,
    *processes.ATTACKS,
    *network.ATTACKS,
    *restricted.ATTACKS,
    *privileges.ATTACKS,
    *kernel.ATTACKS,
    *agent.ATTACKS,
    *limits.ATTACKS,
)
