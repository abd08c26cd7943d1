"""A seccomp profile of ours in the words of ``config.json``, for the runtime to install.

libseccomp compares whole arguments, and each once a rule: what is "not one of these" is spelled out
as all else. The agent installs the same profile as a program of ours afterwards, which compares
exactly, and lets it answer what this cannot ask (``rule.ASK``).
"""

import errno
import itertools
from collections.abc import Iterator, Sequence
from functools import cache

from agentd.linux import abi
from agentd.linux.seccomp.rule import ASK, WORD, ArgumentMatch, Rule
from agentd.linux.seccomp.rules import PROFILES
from agentd.linux.seccomp.trace_rules import TRACING

_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
# Values that a set leaves out, at most: a longer list is told bit by bit.
_MOST_SPELLED = 128

Comparison = dict[str, object]


@cache
def of_profile(profile: str, *, becomes_another: bool = False, image: bool = False) -> object:
    """``linux.seccomp`` of a bundle. ``becomes_another``: the agent makes a user namespace first.
    With an ``image``, whose code may run before the agent's filter, what that would ask about
    tracers is refused.
    """
    entries: list[object] = []
    seen: set[str] = set()
    # What the agent calls itself before its own filter forbids it.
    agents = ("seccomp", "unshare") if becomes_another else ("seccomp",)
    for rule in PROFILES[profile]:
        if rule.code == ASK and not (image and rule in TRACING):
            continue
        names = [name for name in rule.calls if name not in agents]
        code = errno.ENOSYS if rule.code == ASK else rule.code
        for args in _alternatives(rule):
            # The first rule answers, as in ours; libseccomp takes no second answer.
            new = [name for name in names if f"{name} {args}" not in seen]
            seen.update(f"{name} {args}" for name in new)
            if new:
                entry: dict[str, object] = {"names": new, "action": "SCMP_ACT_ERRNO"}
                entries.append(entry | {"errnoRet": code} | ({"args": args} if args else {}))
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        # Calls by any other convention are no system calls of ours: the process is killed.
        "architectures": [_ARCHITECTURES[abi.MACHINE]],
        "syscalls": entries,
    }


def _alternatives(rule: Rule) -> Iterator[list[Comparison]]:
    """Each is a list of comparisons that must all hold; one of the lists is enough."""
    for chosen in itertools.product(*(_comparisons(match) for match in rule.when)):
        yield list(chosen)


def _comparisons(match: ArgumentMatch) -> list[Comparison]:
    if match.above:
        return [_compare(match, "SCMP_CMP_GT", match.values[0])]
    if match.inside:
        return [_masked(match, match.mask, value) for value in match.values]
    return _others(match)


def _others(match: ArgumentMatch) -> list[Comparison]:
    """All that the values are not."""
    if match.values == (0,):  # one bit is enough
        if match.mask == WORD:
            return [_compare(match, "SCMP_CMP_GT", 0)]
        return [_masked(match, bit, bit) for bit in _bits(match.mask)]
    highest = max(match.values) if match.mask == WORD else match.mask
    small = [
        value for value in range(min(highest + 1, _MOST_SPELLED)) if value & match.mask == value
    ]
    if highest < _MOST_SPELLED:
        spelled = [_masked(match, match.mask, v) for v in small if v not in match.values]
        beyond = [_compare(match, "SCMP_CMP_GT", highest)] if match.mask == WORD else []
        return spelled + beyond
    # Too many: what has a bit that none of the small values has. The largest, "all ones", is lost.
    known = 0
    for value in match.values:
        known |= value if value != WORD else 0
    return [_masked(match, bit, bit) for bit in _bits(WORD & ~known)]


def _masked(match: ArgumentMatch, mask: int, value: int) -> Comparison:
    found = _compare(match, "SCMP_CMP_MASKED_EQ", mask)
    return found | {"valueTwo": value}


def _compare(match: ArgumentMatch, operation: str, value: int) -> Comparison:
    return {"index": match.argument, "value": value, "op": operation}


def _bits(mask: int) -> Sequence[int]:
    return [1 << number for number in range(32) if mask >> number & 1]
