"""From rules to an installed filter.

The program checks the architecture, then finds the number by a balanced binary search over runs of
numbers with one outcome. Outcomes that depend on nothing but the number are ones the kernel works
out once at install (seccomp's allow bitmap, Linux 5.11), so an allowed call costs no filter run.
"""

import errno
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from agentd.linux import abi
from agentd.linux.fingerprint import fingerprint
from agentd.linux.seccomp import bpf
from agentd.linux.seccomp.rule import ASK, WORD, ArgumentMatch, Rule
from agentd.linux.seccomp.rules import PROFILES
from agentd.linux.seccomp.socket_rules import NO_INET
from agentd.linux.seccomp.tables import numbers

RET_KILL_PROCESS = 0x80000000
RET_ERRNO = 0x00050000
RET_USER_NOTIF = 0x7FC00000
RET_ALLOW = 0x7FFF0000

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]. Both machines are
# little-endian, so the low half of an argument comes first.
_NR, _ARCH, _ARGS = 0, 4, 16
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = range(0x40000000, 0x80000000)

_ALLOW, _KILL, _ASKED = "allow", "kill", "ask"


class RuleRow(NamedTuple):
    """A rule as people read it. ``when`` is empty where the call always fails."""

    group: str
    calls: tuple[str, ...]
    when: str
    answer: str
    why: str


class _Run(NamedTuple):
    """The numbers from ``start`` up to the next run's share the outcome that a label names."""

    start: int
    label: str


def rules(profile: str, *, inet: bool = True) -> tuple[Rule, ...]:
    """Returns a profile's rules. Raises LookupError for an unknown profile."""
    if profile not in PROFILES:
        raise LookupError(f"no seccomp profile {profile!r}; known: {', '.join(PROFILES)}")
    return PROFILES[profile] if inet else (*PROFILES[profile], NO_INET)


@cache
def build(
    profile: str, machine: str = abi.MACHINE, *, inet: bool = True, kills: bool = True
) -> bytes:
    """Builds the filter as an array of ``struct sock_filter``; without ``inet``, unix sockets only.

    Wrong architecture or an x32 number: the process dies of SIGSYS, or without ``kills`` it is
    ENOSYS: a tracer's own answer to a call, which a filter of its gives, comes before an errno and
    after that. A number that the table does not have, a future one too: ENOSYS.
    Raises LookupError for an unknown profile or machine.
    """
    return compile_rules(rules(profile, inet=inet), machine, kills=kills)


def compile_rules(chosen: Sequence[Rule], machine: str, *, kills: bool = True) -> bytes:
    """Builds from rules that are no profile's."""
    table = numbers(machine)
    by_number = _rules_by_number(chosen, table)
    leaves: dict[str, tuple[Rule, ...]] = {}
    runs = _merge(_outcomes(table, by_number, machine, leaves))
    foreign = RET_KILL_PROCESS if kills else RET_ERRNO | errno.ENOSYS
    return bpf.assemble(_program(runs, leaves, machine, foreign))


def digest(program: bytes) -> str:
    """Returns 16 hex digits of SHA-256: what an enforcement report names the filter by."""
    return fingerprint(program)


def explain(profile: str, *, inet: bool = True) -> list[RuleRow]:
    """Lists the profile's rules in order, one row each."""
    return [
        RuleRow(
            rule.group,
            rule.calls,
            " and ".join(map(str, rule.when)),
            "asks the agent" if rule.code == ASK else errno.errorcode[rule.code],
            rule.why,
        )
        for rule in rules(profile, inet=inet)
    ]


def _rules_by_number(chosen: Sequence[Rule], table: dict[str, int]) -> dict[int, tuple[Rule, ...]]:
    found: dict[int, tuple[Rule, ...]] = {}
    for rule in chosen:
        for name in rule.calls:
            if name in table:
                number = table[name]
                found[number] = (*found.get(number, ()), rule)
    return found


def _outcomes(
    table: dict[str, int],
    by_number: dict[int, tuple[Rule, ...]],
    machine: str,
    leaves: dict[str, tuple[Rule, ...]],
) -> Iterator[_Run]:
    """One run a number, in order, over all 32 bits; fills ``leaves`` with the argument checks."""
    known = set(table.values())
    for number in range(max(known) + 1):
        if number in known:
            yield _Run(number, _label(by_number.get(number, ()), leaves))
        else:
            yield _Run(number, _errno(errno.ENOSYS))
    yield _Run(max(known) + 1, _errno(errno.ENOSYS))
    if machine == "x86_64":
        yield _Run(_X32.start, _KILL)
        yield _Run(_X32.stop, _errno(errno.ENOSYS))  # -1 among them: what a tracer skips with


def _label(checks: tuple[Rule, ...], leaves: dict[str, tuple[Rule, ...]]) -> str:
    if not checks:
        return _ALLOW
    if not checks[0].when:
        return _errno(checks[0].code)
    # the whole value, the argument's index too: calls share a leaf only where nothing differs
    label = f"check {[(rule.when, rule.code) for rule in checks]}"
    leaves[label] = checks
    return label


def _errno(code: int) -> str:
    return _ASKED if code == ASK else f"errno {code}"


def _merge(runs: Iterator[_Run]) -> list[_Run]:
    merged: list[_Run] = []
    for run in runs:
        if not merged or merged[-1].label != run.label:
            merged.append(run)
    return merged


def _program(
    runs: Sequence[_Run], leaves: dict[str, tuple[Rule, ...]], machine: str, foreign: int
) -> Iterator[bpf.Item]:
    yield bpf.load(_ARCH)
    # Here, and not at the far end: that would take a jump more for every call.
    yield bpf.equal(_AUDIT_ARCH[machine], "native", None)
    yield bpf.answer(foreign)
    yield bpf.Label("native")
    yield bpf.load(_NR)
    yield from _search(runs)
    for label, checks in leaves.items():
        yield bpf.Label(label)
        yield from _checks(label, checks)
    codes = {run.label for run in runs} | {_errno(c.code) for r in leaves.values() for c in r}
    for label in sorted(code for code in codes if code.startswith("errno ")):
        yield bpf.Label(label)
        yield bpf.answer(RET_ERRNO | int(label.split()[1]))
    if _ASKED in codes:
        yield bpf.Label(_ASKED)
        yield bpf.answer(RET_USER_NOTIF)
    if any(run.label == _KILL for run in runs):
        yield bpf.Label(_KILL)
        yield bpf.answer(foreign)
    yield bpf.Label(_ALLOW)
    yield bpf.answer(RET_ALLOW)


def _search(runs: Sequence[_Run]) -> Iterator[bpf.Item]:
    """Branches from the middle run out; a single run needs none, its label is the target."""
    if len(runs) == 1:
        yield bpf.Goto(runs[0].label)
        return
    middle = len(runs) // 2
    low, high = runs[:middle], runs[middle:]
    upper = f"from {high[0].start}"
    yield bpf.at_least(
        high[0].start,
        high[0].label if len(high) == 1 else upper,
        low[0].label if len(low) == 1 else None,
    )
    if len(low) > 1:
        yield from _search(low)
    if len(high) > 1:
        yield bpf.Label(upper)
        yield from _search(high)


def _checks(label: str, checks: Sequence[Rule]) -> Iterator[bpf.Item]:
    """Every rule in turn; the first whose matches all hold answers, else the call is allowed."""
    for position, rule in enumerate(checks):
        if not rule.when:
            yield bpf.Goto(_errno(rule.code))
            return
        last = position == len(checks) - 1
        miss = _ALLOW if last else f"{label} > {position}"
        for step, match in enumerate(rule.when):
            final = step == len(rule.when) - 1
            hit = _errno(rule.code) if final else f"{label} > {position}.{step}"
            yield from _match(match, hit, miss)
            if not final:
                yield bpf.Label(hit)
        if not last:
            yield bpf.Label(miss)


def _match(match: ArgumentMatch, hit: str, miss: str) -> Iterator[bpf.Item]:
    yield bpf.load(_ARGS + 8 * match.argument)
    if match.mask != WORD:
        yield bpf.mask(match.mask)
    if match.above:
        yield bpf.at_least(match.values[0] + 1, hit, miss)
        return
    inside, outside = (hit, miss) if match.inside else (miss, hit)
    for value in match.values[:-1]:
        yield bpf.equal(value, inside)
    yield bpf.equal(match.values[-1], inside, outside)
