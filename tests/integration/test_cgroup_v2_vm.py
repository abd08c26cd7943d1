"""Control groups of version 2, on a real kernel: one guest is booted and every check runs in it.

The guest's Python code is in ``tests/vm/guest``; here is what its answers must be.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
from tests.vm import debian, machine

MIB = 1 << 20
TICK_USEC = 4000
Answer = Callable[[str], dict[str, Any]]
EXITED = {"code": 0, "signal": None, "cause": "exited"}
pytestmark = pytest.mark.timeout(1800)  # what is emulated takes its time beside others


@pytest.fixture(scope="module")
def guest() -> dict[str, dict[str, Any]]:
    try:
        return machine.run_checks()
    except debian.Unavailable as missing:
        pytest.skip(f"needs a guest under QEMU: {missing}")


@pytest.fixture
def answer(guest: dict[str, dict[str, Any]]) -> Answer:
    """What a check found; fails with the guest's own traceback, or when it never ran."""

    def find(name: str) -> dict[str, Any]:
        assert name in guest, f"the guest ended before {name}; it ran {sorted(guest)}"
        line = guest[name]
        assert "error" not in line, line["error"]
        value: dict[str, Any] = line["value"]
        return value

    return find


def test_the_kernel_has_version_2_alone(answer: Answer) -> None:
    found = answer("detect")
    assert found["version"] == 2
    assert found["controllers"] == ["cpu", "memory", "pids"]
    assert found["blockers"] == []
    assert re.search(r"^cgroup2 /sys/fs/cgroup cgroup2 ", found["mounts"], re.MULTILINE)
    assert " cgroup " not in found["mounts"]


def test_limits_are_what_the_kernel_shows(answer: Answer) -> None:
    found = answer("limits")
    assert found["memory.max"] == str(64 * MIB)
    assert found["memory.swap.max"] == "0"
    assert found["pids.max"] == "32"
    assert found["cpu.max"] == "50000 100000"
    assert found["memory.oom.group"] == "0"  # one process too big does not end the whole sandbox
    assert found["held"] == ["cpu", "memory", "pids"]
    assert sorted(found["shared"]) == ["cpu", "memory", "pids"]
    alone = found["cpu alone"]
    assert alone["cpu.max"] == "150000 100000"
    assert {alone[name] for name in ("memory.max", "memory.swap.max", "pids.max")} == {"max"}


def test_a_memory_bomb_is_killed_and_counted(answer: Answer) -> None:
    found = answer("memory_bomb")
    assert found["bomb"] == -9
    assert found["before"]["oom"] == 0
    assert found["after"]["oom"] == 1
    assert found["within"] == 0
    assert found["unlimited"] == 0  # the same, without a limit, lives


def test_a_fork_bomb_is_stopped_counted_and_killed(answer: Answer) -> None:
    found = answer("fork_bomb")
    assert found["exit"] == 1
    assert found["members"] == 7  # the bomb itself has ended
    assert found["peak"] == "8"
    assert found["before"]["pids"] == 0
    assert found["after"]["pids"] > 0
    assert found["killed"] is True
    assert found["left"] == []


def test_usage_is_counted_from_nothing(answer: Answer) -> None:
    found = answer("usage")
    assert found["before"] == {"memory_bytes": 0, "peak_memory_bytes": 0, "cpu_usec": 0}
    assert 24 * MIB <= found["after"]["peak_memory_bytes"] <= 64 * MIB
    assert found["after"]["memory_bytes"] < 24 * MIB
    assert found["after"]["cpu_usec"] >= 100_000


def test_the_cpu_quota_throttles(answer: Answer) -> None:
    found = answer("cpu_quota")
    assert found["limited"]["nr_throttled"] > 0
    assert found["limited"]["throttled_usec"] > 0
    assert found["unlimited"]["nr_throttled"] == 0


def test_freeze_has_stopped_everything_when_it_returns(answer: Answer) -> None:
    found = answer("freeze")
    assert found["frozen"] == [1] * 10
    # The kernel may account the last tick before the stop after it: 4 ms at 250 Hz.
    assert max(found["used"]) <= 4 * TICK_USEC  # of 20,000 on each processor
    assert found["resumed"] == [True] * 10
    assert found["killed frozen"] is True
    assert found["codes"] == [-9] * 6


def test_kill_takes_nested_groups_too(answer: Answer) -> None:
    assert answer("kill") == {"counted": 5, "killed": True, "codes": [-9] * 5, "left": []}


def test_kill_without_cgroup_kill_outruns_a_fork_bomb(answer: Answer) -> None:
    assert answer("kill_without_cgroup_kill") == {"killed": True, "code": -9, "left": []}


def test_removal_takes_nested_groups_and_is_idempotent(answer: Answer) -> None:
    assert answer("nested_removal") == {"codes": [-9] * 3, "gone": True}


def test_a_stale_group_is_listed_and_reaped(answer: Answer) -> None:
    assert answer("stale") == {"listed": ["sbx-1-2-dead"], "code": -9, "after": []}


def test_groups_made_at_the_same_time_do_not_disturb_each_other(answer: Answer) -> None:
    assert answer("at_the_same_time") == {"failures": []}


@pytest.mark.parametrize(
    ("check", "leaf"),
    [
        ("delegated_to_root", "/unit.service/agentd-host"),
        ("delegated_to_a_user", "/user.scope/agentd-host"),
        ("in_a_container", "/agentd-host"),
    ],
)
def test_the_owner_of_a_part_of_the_tree_can_limit(answer: Answer, check: str, leaf: str) -> None:
    found = answer(check)
    assert found["blockers"] == []
    assert found["controllers"] == ["cpu", "memory", "pids"]
    assert found["bomb"] == -9
    assert found["oom"] == 1
    assert found["own"] == f"0::{leaf}"
    assert found["again"] == []


def test_without_delegation_the_reason_and_the_fix_are_named(answer: Answer) -> None:
    [text] = answer("a_user_without_delegation")["blockers"]
    assert text.startswith("/sys/fs/cgroup is not writable by uid 65534")
    assert "Delegate=yes" in text


def test_a_controller_that_is_withheld_is_not_said_to_hold(answer: Answer) -> None:
    assert answer("taken_back") == {"controllers": ["cpu", "pids"], "held": ["pids"]}


def test_the_linux_wall_is_usable_with_limits(answer: Answer) -> None:
    assert answer("sandbox_probe") == {"usable": True, "notes": [], "blockers": "()"}


def test_a_sandbox_is_held_to_its_memory_and_goes_on(answer: Answer) -> None:
    found = answer("sandbox_memory")
    assert len(found["groups"]) == 1
    assert found["max"] == str(64 * MIB)
    assert found["enforcement"]["memory"] == [
        "64M",
        True,
        (
            "cgroup controller memory, sockets' buffers too; "
            "not counted: file locks, listings of overlays"
        ),
    ]
    assert found["true"].items() >= EXITED.items()
    assert found["before"]["oom"] == 0
    assert found["bomb"]["signal"] == 9
    assert found["after"]["oom"] == 1
    assert found["still"].items() >= (EXITED | {"out": "on\n"}).items()
    assert found["alive"] is True
    assert found["usage"]["peak_memory_bytes"] <= 64 * MIB
    assert found["left"] == []


def test_a_sandbox_reads_its_own_limit_alone_and_writes_none(answer: Answer) -> None:
    found = answer("sandbox_memory")
    assert found["limit inside"]["out"] == f"{64 * MIB}\n", found["limit inside"]
    assert found["groups inside"]["out"] == "/sys/fs/cgroup/*/\n"  # none matches
    assert found["written inside"]["code"] != 0
    assert "Read-only file system" in found["written inside"]["err"]


def test_without_the_limit_the_same_command_lives(answer: Answer) -> None:
    assert answer("sandbox_without_memory_limit")["bomb"].items() >= EXITED.items()


def test_files_of_a_sandbox_count_as_its_memory(answer: Answer) -> None:
    found = answer("sandbox_files_count_as_memory")
    assert found["counters"]["oom"] > 0
    assert found["peak"] <= 64 * MIB
    assert found["left"] == []


def test_a_sandbox_is_held_to_its_processes_and_its_cpu(answer: Answer) -> None:
    found = answer("sandbox_pids_and_cpu")
    assert found["enforcement"] == {
        "pids": [True, "cgroup controller pids"],
        "cpus": [True, "cgroup controller cpu"],
    }
    assert "can't fork" in found["forks"]["err"]
    assert found["counters"]["pids"] > 0
    assert found["cpu"]["nr_throttled"] > 0
    assert found["left"] == []


def test_nothing_is_left(answer: Answer) -> None:
    assert answer("nothing_left") == {"groups": []}


def test_every_check_of_the_guest_is_looked_at(guest: dict[str, dict[str, Any]]) -> None:
    with open(__file__, encoding="utf-8") as file:
        text = file.read()
    assert [name for name in guest if f'"{name}"' not in text] == []
