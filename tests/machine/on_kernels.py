"""``make test-kernels``: one short list on each kernel, in an emulated machine of that kernel.

Not collected by itself: each boot takes minutes.
"""

import json
import os
import sys
from functools import cache
from typing import Any

import pytest
from tests.machine.machine import UNAVAILABLE, Lost, Machine
from tests.vm import debian

_SECONDS = 5400.0  # a quarter of an hour where nothing else runs; it ends what hangs
OWN = ".".join(os.uname().release.split(".")[:2])
LINES = list(dict.fromkeys(["6.1", "6.12", OWN]))
OLD = "5.10"
CONTROLS = ["seccomp", "landlock", "no_new_privs", "capabilities"]

pytestmark = pytest.mark.timeout(_SECONDS + 60)


def found(line: str, which: str, check: str) -> Any:
    """What a check of a list found on the newest release of a line; fails with its traceback.

    Ends all where there is none: what was not seen has not passed.
    """
    missing, text = _ran(line, which)
    if missing:
        pytest.exit(f"skipped: Linux {line}: {missing}", returncode=UNAVAILABLE)
    lines = [json.loads(each) for each in text.splitlines() if each.startswith('{"check"')]
    told = {each["check"]: each for each in lines}
    if check not in told or "error" in told[check]:
        pytest.fail(told.get(check, {}).get("error", text), pytrace=False)
    return told[check]["value"]


@cache
def _ran(line: str, which: str) -> tuple[str, str]:
    """Why there is no such machine, and what it said; one boot, however it went."""
    output = bytearray()

    def show(data: bytes) -> None:
        output.extend(data)
        sys.__stdout__.write(data.decode(errors="replace"))  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]

    machine = Machine(line, systemd=which == "systemd", seconds=_SECONDS)
    try:
        machine.run([sys.executable, "-m", "tests.machine.kernel_checks", which], show)
    except debian.Unavailable as missing:
        return str(missing), ""
    except Lost as lost:
        return "", f"{output.decode(errors='replace')}\n{lost}"
    return "", output.decode(errors="replace")


@pytest.mark.parametrize("line", LINES)
class TestOnEachKernel:
    def test_it_is_that_kernel(self, line: str) -> None:
        assert found(line, "plain", "kernel").startswith(f"{line}.")

    def test_both_walls_stand_with_all_controls(self, line: str) -> None:
        expected = ["on", CONTROLS]
        assert found(line, "plain", "walls") == {"linux": expected, "landlock": expected}

    def test_a_folder_on_ext4_is_mounted_in_each_mode(self, line: str) -> None:
        mounts = found(line, "plain", "mounts")
        assert [mounts[f"ext4 {mode}"] for mode in ("ro", "cow", "rw")] == [
            ["before", "before"],
            ["before", "before"],
            ["before", "after"],
        ]

    @pytest.mark.parametrize("name", ["tmpfs", "overlay"])
    def test_where_owners_cannot_be_mapped_rw_is_refused_by_the_file_systems_name(
        self, line: str, name: str
    ) -> None:
        mounts = found(line, "plain", "mounts")
        assert [mounts[f"{name} {mode}"] for mode in ("ro", "cow")] == [["before", "before"]] * 2
        if name == "tmpfs" and line != "6.1":  # since Linux 6.3
            assert mounts["tmpfs rw"] == ["before", "after"]
        else:
            assert name in mounts[f"{name} rw"]

    def test_memory_and_processes_are_held_by_cgroup_v2(self, line: str) -> None:
        memory = found(line, "plain", "memory_limit")
        assert memory["enforced"] is True
        assert (memory["bomb"], memory["after"]) == ("oom", "on\n")
        assert found(line, "plain", "pids_limit") == ["cgroup controller pids", True]

    def test_a_users_scope_under_systemd_holds_memory(self, line: str) -> None:
        assert found(line, "systemd", "pid_1") == "systemd"
        memory = json.loads(found(line, "systemd", "user_scope"))["value"]
        assert memory["enforced"] is True
        assert (memory["bomb"], memory["after"]) == ("oom", "on\n")

    def test_a_user_who_is_logged_in_has_limits_by_a_scope_of_its_own(self, line: str) -> None:
        told = found(line, "systemd", "scoped")
        scoped = "in a scope of your systemd"
        embedded = told["embedded"]
        assert embedded["before"].startswith("session-")
        memory = embedded["memory"]
        assert (memory["enforced"], memory["bomb"], memory["after"]) == (True, "oom", "on\n")
        assert memory["detail"].startswith(f"cgroup controller memory {scoped}")
        assert embedded["limits"] == {
            "pids": f"cgroup controller pids {scoped}",
            "cpus": f"cgroup controller cpu {scoped}",
        }
        assert embedded["fork refused"]
        assert told["command"] == {
            "quota": "50000 100000",
            "cpus": True,
            "memory": True,
            "doctor": True,
            "not limited": False,
        }
        assert told["served"]["enforced"]
        assert scoped in told["served"]["detail"]
        assert told["killed"] == {"on": "on", "scopes": 1, "left": []}

    @pytest.mark.parametrize(
        ("where", "why"),
        [
            ("absent", "no systemd of this user's runs (loginctl enable-linger"),
            ("bounded", "has a limit (memory.max is 1073741824)"),
            ("first", "it is the first process of run-"),
        ],
    )
    def test_where_no_scope_can_be_had_the_reason_is_told(
        self, line: str, where: str, why: str
    ) -> None:
        enforced, detail = json.loads(found(line, "systemd", "scoped")[where])
        assert not enforced
        assert " is not writable by uid 4343, and " in detail
        assert why in detail

    def test_the_units_serve_and_keep_sandboxes_over_a_restart(self, line: str) -> None:
        assert found(line, "systemd", "units") == {
            "memory": [True, "cgroup controller memory"],
            "another daemon": True,
            "the sandbox": "on",
        }


def test_a_kernel_that_is_too_old_is_refused_with_the_reason() -> None:
    kernel = found(OLD, "refused", "kernel")
    assert kernel.startswith(f"{OLD}.")
    for backend, why in (
        ("linux", f"kernel {kernel} is too old"),
        ("landlock", "boot Linux 5.13 or newer with lsm=landlock"),
    ):
        code, text = found(OLD, "refused", "refusals")[backend]
        assert code == 125
        assert why in text
