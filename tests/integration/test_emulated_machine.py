"""A machine with KVM and cgroup v2, under software emulation: what no development machine may have.

One boot, and a fixed list of checks in it, by agentd's own doors; ``make test-kvm`` runs far more,
forks among it, whose memory is saved and restored under two emulations.
/dev/kvm is root's alone there, as devtmpfs makes it: the hardest of the usual modes.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.machine.machine import ROOT, UNAVAILABLE, Lost, Machine
from tests.vm import boot, debian

CHECKS = ("found", "run", "files", "close", "memory_limit", "user_scope")
# A minute or two on two processors; a first run downloads 110 MB. It ends what hangs.
_SECONDS = 1800.0

pytestmark = pytest.mark.timeout(_SECONDS + 60)


@pytest.fixture(scope="module")
def told() -> dict[str, dict[str, Any]]:
    """What each check found, by its name."""
    lines = bytearray()
    command = (
        f"chmod 600 /dev/kvm; exec {sys.executable} -m tests.machine.checks {' '.join(CHECKS)}"
    )
    try:
        with _cache() as cache:
            machine = Machine(seconds=_SECONDS, environment={"XDG_CACHE_HOME": cache})
            code = machine.run(["sh", "-c", command], lines.extend)
    except debian.Unavailable as missing:
        pytest.skip(f"needs an emulated machine: {missing}")
    except Lost as lost:
        pytest.fail(f"{lines.decode(errors='replace')}\n{lost}")
    text = lines.decode(errors="replace")
    assert code == 0, text
    found = [json.loads(line) for line in text.splitlines() if line.startswith('{"check"')]
    assert [line["check"] for line in found] == list(CHECKS), text
    return {line["check"]: line for line in found}


@contextlib.contextmanager
def _cache() -> Iterator[str]:
    """A cache with the image, for the machine alone: it sees files of this host's, and no locks,
    and others here build images meanwhile."""
    image = boot.image()
    with tempfile.TemporaryDirectory(prefix="agentd-cache-", dir="/var/tmp") as folder:
        images = Path(folder, "agentd/images")
        build = Path(".builds", os.path.basename(image.folder))
        shutil.copytree(image.folder, images / build)
        (images / image.name).symlink_to(build)
        yield folder


def value(told: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    assert "error" not in told[name], told[name]["error"]
    found: dict[str, Any] = told[name]["value"]
    return found


def test_kvm_and_version_2_are_found(told: dict[str, dict[str, Any]]) -> None:
    found = value(told, "found")
    assert (found["kvm"], found["cgroup"]) == (True, 2)
    assert found["qemu"][0].endswith("accel=kvm")


def test_a_virtual_machine_runs_in_kvm_where_it_is_found(
    told: dict[str, dict[str, Any]],
) -> None:
    found = value(told, "run")
    assert found["wall"].startswith("accel=kvm, hardware virtualisation")
    assert found["lines"][1:] == ["1000", "by stdin"]
    assert found["status"] == "ok"


def test_files_go_both_ways(told: dict[str, dict[str, Any]]) -> None:
    assert value(told, "files") == {"same": True, "size": str(1 << 20)}


def test_no_group_is_left(told: dict[str, dict[str, Any]]) -> None:
    assert value(told, "close") == []


def test_memory_is_held_by_version_2(told: dict[str, dict[str, Any]]) -> None:
    found = value(told, "memory_limit")
    assert found["enforced"] is True
    assert found["detail"].startswith("cgroup controller memory")
    assert (found["bomb"], found["after"]) == ("oom", "on\n")


def test_an_ordinary_user_has_limits_and_pauses_by_a_scope_of_its_systemd(
    told: dict[str, dict[str, Any]],
) -> None:
    found = value(told, "user_scope")
    if "missing" in found:
        pytest.skip(f"needs a systemd: {found['missing']}")
    assert found == {
        "held": {
            "memory": "cgroup controller memory in a scope of your systemd",
            "cpus": "cgroup controller cpu in a scope of your systemd",
            "pids": "cgroup controller pids in a scope of your systemd",
        },
        "bomb": "oom",
        "fork refused": True,
        "frozen": ["frozen 1", "frozen 0"],
        "after": "on\n",
    }


def test_a_machine_ends_with_its_owner_however_that_ends() -> None:
    argv = [sys.executable, "-m", "tests.machine", "--", "sleep", "600"]
    owner = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert owner.stderr is not None
    try:
        while (machine := _child(owner.pid, "qemu-system-x86")) is None:
            if owner.poll() == UNAVAILABLE:
                pytest.skip(owner.stderr.read().strip())
            assert owner.poll() is None, owner.stderr.read()
            time.sleep(0.05)
        alive = os.pidfd_open(machine)
        owner.kill()
        poll = select.poll()
        poll.register(alive, select.POLLIN)
        assert poll.poll(30_000), "the machine outlived its owner"
        os.close(alive)
    finally:
        owner.kill()
        owner.wait()
        owner.stderr.close()


def _child(pid: int, name: str) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        named = [int(c) for c in children if Path(f"/proc/{c}/comm").read_text().strip() == name]
    except OSError:  # it ended while we looked
        return None
    return named[0] if named else None
