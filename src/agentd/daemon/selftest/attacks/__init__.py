"""Every attack and every check, in the order in which they are run."""

from agentd.daemon.selftest.attack import Attack
from agentd.daemon.selftest.attacks import (
    agent,
    checks,
    files,
    kernel,
    limits,
    network,
    privileges,
    processes,
)

ATTACKS: tuple[Attack, ...] = (
    *checks.CHECKS,
    *files.ATTACKS,
    *processes.ATTACKS,
    *network.ATTACKS,
    *privileges.ATTACKS,
    *kernel.ATTACKS,
    *agent.ATTACKS,
    *limits.ATTACKS,
)
