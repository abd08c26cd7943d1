"""A profile in the runtime's words against the rules that it is made of."""

import errno
import itertools

import pytest

from agentd.linux.seccomp.rule import ASK, WORD
from agentd.linux.seccomp.rules import PROFILES
from agentd.sandbox.backends.oci.filters import of_profile

# Between them every rule of the namespace wall's eight.
SANDBOXES = ["sandbox-rw", "sandbox-host-net-root"]
# What libseccomp cannot say of it: to ask which one it is.
ASKS_PERSONALITY = ("personality", (0xFFFFFFFF,))
#: What the agent does itself, before its own filter.
BY_AGENT = {"seccomp"}


def answer(profile, name, args):
    """As libseccomp: any entry all of whose comparisons hold, of whole arguments; 0 for none."""
    compare = {
        "SCMP_CMP_GT": lambda arg, value, _: arg > value,
        "SCMP_CMP_MASKED_EQ": lambda arg, mask, value: arg & mask == value,
    }
    for entry in profile["syscalls"]:
        if name in entry["names"] and all(
            compare[one["op"]](args[one["index"]], one["value"], one.get("valueTwo", 0))
            for one in entry.get("args", [])
        ):
            return entry["errnoRet"]
    return 0


def ours(rules, name, args):
    for rule in rules:
        if name in rule.calls and all(match.holds(args[match.argument]) for match in rule.when):
            return 0 if rule.code == ASK else rule.code
    return 0


def samples(rules, name):
    """Values around each that a rule names, for each argument that is looked at."""
    found = {}
    for rule in rules:
        for match in rule.when if name in rule.calls else ():
            near = {0, 1, 2, 11, 59, 1 << 31, WORD}
            for value in match.values:
                near |= {value, max(0, value - 1), (value + 1) & WORD, value | match.mask & 0x800}
            found.setdefault(match.argument, set()).update(near)
    return found


@pytest.mark.parametrize("name", SANDBOXES)
def test_it_refuses_what_the_rules_refuse_and_nothing_else(name):
    """Of each call that a rule looks into, at the values around those that the rule names."""
    profile, rules = of_profile(name), PROFILES[name]
    looked = 0
    for call in sorted({call for rule in rules for call in rule.calls} - BY_AGENT):
        values = samples(rules, call)
        for chosen in itertools.product(*(sorted(values[index]) for index in sorted(values))):
            args = dict(zip(sorted(values), chosen, strict=True))
            wanted, found = ours(rules, call, args), answer(profile, call, args)
            if (call, chosen) != ASKS_PERSONALITY:
                assert bool(wanted) == bool(found), (call, chosen, wanted, found)
            looked += 1
    assert looked > 1000


def test_where_the_agent_makes_a_user_namespace_it_may():
    assert answer(of_profile("sandbox", becomes_another=True), "unshare", {}) == 0
    assert answer(of_profile("sandbox"), "unshare", {}) == errno.EPERM


def test_what_would_be_asked_is_refused_where_an_image_may_run_first():
    args = {0: 0x4206, 3: 0x40}  # PTRACE_SEIZE, PTRACE_O_TRACEEXIT
    assert answer(of_profile("sandbox"), "ptrace", args) == 0
    assert answer(of_profile("sandbox", image=True), "ptrace", args) == errno.ENOSYS
