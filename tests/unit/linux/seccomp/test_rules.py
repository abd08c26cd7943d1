"""The rules as data: each is needed, sound and explained."""

import errno

import pytest
from tests.unit.linux.seccomp.test_filter import ARCH, decode, fails, run

from agentd.linux.seccomp import PROFILES, build, explain, of_namespaces
from agentd.linux.seccomp.rule import ASK, Rule
from agentd.linux.seccomp.socket_rules import NO_INET
from agentd.linux.seccomp.tables import MACHINES, numbers

LARGEST = (*PROFILES["process-same-uid"], NO_INET)
KNOWN = {name for machine in MACHINES for name in numbers(machine)}


@pytest.mark.parametrize("rule", LARGEST, ids=lambda r: f"{r.group}: {r.calls[0]}")
def test_a_rule_names_calls_that_exist_and_says_why(rule: Rule) -> None:
    assert rule.calls
    assert set(rule.calls) <= KNOWN
    assert len(set(rule.calls)) == len(rule.calls)
    assert len(rule.why.split()) >= 5
    assert not rule.why.endswith(".")
    assert rule.code == ASK or rule.code in errno.errorcode
    for match in rule.when:
        assert 0 <= match.argument < 6
        assert match.values
        assert all(value & ~match.mask == 0 for value in match.values), "could never match"


def test_no_rule_is_hidden_behind_another() -> None:
    always: set[str] = set()
    seen: set[object] = set()
    for rule in LARGEST:
        for name in rule.calls:
            assert name not in always, f"{name} is already denied"
            assert (name, rule.when) not in seen, f"{name} has the same rule twice"
            seen.add((name, rule.when))
            if not rule.when:
                always.add(name)


def test_profiles_only_ever_add() -> None:
    shared, process, same_uid = (
        PROFILES[name] for name in ("monitor", "process", "process-same-uid")
    )
    assert process[: len(shared)] == shared
    assert same_uid[: len(process)] == process
    assert len(shared) < len(process) < len(same_uid)


def test_only_a_network_of_its_own_is_looked_at() -> None:
    for net, rw, own in (("none", False, True), ("none", True, True), ("host", False, False)):
        code = decode(build(of_namespaces(net, rw=rw), "x86_64"))
        socket = numbers("x86_64")["socket"]
        answer = run(code, ARCH["x86_64"], socket, (16, 3, 0))
        assert answer == (fails(ASK) if own else fails(errno.EOPNOTSUPP))


def test_set_id_bits_are_refused_where_a_folder_is_mounted_rw() -> None:
    for net in ("none", "host"):
        plain, rw = (PROFILES[of_namespaces(net, rw=rw)] for rw in (False, True))
        assert rw[: len(plain)] == plain
        assert {rule.group for rule in rw[len(plain) :]} == {"set-id bits"}
        assert "set-id bits" not in {rule.group for rule in plain}


def test_explain_has_a_row_a_rule() -> None:
    rows = explain("process", inet=False)
    assert len(rows) == len(PROFILES["process"]) + 1
    (clone,) = (row for row in rows if row.calls == ("clone",))
    assert clone.when == "flags & 0x7e020000 not in {0x0}"
    assert clone.answer == "EPERM"
    (pipes,) = (row for row in rows if "size > " in row.when)
    assert pipes.when == "cmd in {0x407} and size > 0x10000"
    (clone3,) = (row for row in rows if row.calls == ("clone3",))
    assert (clone3.when, clone3.answer) == ("", "ENOSYS")
