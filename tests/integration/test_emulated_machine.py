"""A machine with KVM and cgroup v2, under software emulation: what no development machine may have.

One boot, and a fixed list of checks in it, by agentd's own doors; ``make test-kvm`` runs far more.
/dev/kvm is root's alone there, as devtmpfs makes it: the hardest of the usual modes.
"""

import json
import sys
from typing import Any

import pytest
from tests.machine.machine import Machine
from tests.vm import boot, debian

CHECKS = ("doctor", "run", "files", "snapshot", "fork", "close", "memory_limit")
# Alone on two processors a minute and a half; a first run downloads 110 MB.
_SECONDS = 900.0

pytestmark = pytest.mark.timeout(_SECONDS + 60)


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, Any]]:
    """What each check found, by its name."""
    lines = bytearray()
    command = (
        f"chmod 600 /dev/kvm; exec {sys.executable} -m tests.machine.checks {' '.join(CHECKS)}"
    )
    try:
        boot.image()
        code = Machine(seconds=_SECONDS).run(["sh", "-c", command], lines.extend)
    except debian.Unavailable as missing:
        pytest.skip(f"needs an emulated machine: {missing}")
    text = lines.decode(errors="replace")
    assert code == 0, text
    found = [json.loads(line) for line in text.splitlines() if line.startswith('{"check"')]
    assert [line["check"] for line in found] == list(CHECKS), text
    return {line["check"]: line for line in found}


def value(told: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    assert "error" not in told[name], told[name]["error"]
    found: dict[str, Any] = told[name]["value"]
    return found


def test_doctor_finds_kvm_and_version_2(told: dict[str, dict[str, Any]]) -> None:
    found = value(told, "doctor")
    assert (found["kvm"], found["cgroup"]) == (True, 2)
    assert found["qemu"]["notes"][0].endswith("accel=kvm")


def test_a_virtual_machine_runs_in_kvm_where_doctor_says_so(
    told: dict[str, dict[str, Any]],
) -> None:
    found = value(told, "run")
    assert found["wall"].startswith("accel=kvm, hardware virtualisation")
    assert found["lines"][1:] == ["1000", "by stdin"]
    assert found["status"] == "ok"


def test_files_go_both_ways(told: dict[str, dict[str, Any]]) -> None:
    assert value(told, "files") == {"same": True, "size": str(1 << 20)}


def test_a_snapshot_goes_on_and_so_does_its_source(told: dict[str, dict[str, Any]]) -> None:
    expected = {"source": "kept\n", "copy": "kept\n", "goes on": True}
    assert value(told, "snapshot") == expected


def test_a_fork_has_an_identity_of_its_own(told: dict[str, dict[str, Any]]) -> None:
    assert value(told, "fork") == {"machine ids": 2, "copy": "kept\n", "goes on": True}


def test_no_group_is_left(told: dict[str, dict[str, Any]]) -> None:
    assert value(told, "close") == []


def test_memory_is_held_by_version_2(told: dict[str, dict[str, Any]]) -> None:
    found = value(told, "memory_limit")
    assert found["enforced"] is True
    assert found["detail"].startswith("cgroup controller memory")
    assert (found["bomb"], found["after"]) == ("oom", "on\n")
