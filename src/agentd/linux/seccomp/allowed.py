"""Filters that name what is allowed, for agentd's own processes: everything else is refused.

Those of sandboxes name what is refused, since programs there may need anything; of a process of
ours it is known what it calls.
"""

from collections.abc import Sequence

from agentd.linux import abi
from agentd.linux.seccomp.filter import compile_rules
from agentd.linux.seccomp.rule import Rule
from agentd.linux.seccomp.tables import numbers


def build_allowing(calls: str, checks: Sequence[Rule] = (), machine: str = abi.MACHINE) -> bytes:
    """Builds the filter as an array of ``struct sock_filter``.

    ``calls`` are the names that pass, where no rule of ``checks`` refuses their arguments; a name
    that the machine does not have is left out. All others: EPERM. Raises LookupError for an
    unknown machine.
    """
    table = numbers(machine)
    rest = " ".join(sorted(set(table) - set(calls.split())))
    return compile_rules((*checks, Rule("others", rest, "it needs them not")), machine)
