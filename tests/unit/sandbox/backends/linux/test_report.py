import os
import sys
from typing import Any

import pytest

from agentd.linux.probe import Facts
from agentd.model.limits import Limits
from agentd.model.mount import Mount, MountMode
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.linux import report
from agentd.sandbox.backends.linux.plan import make_plan

STEPS = ("rlimits", "no_new_privs", "capabilities", "dumpable", "landlock", "seccomp")
GOOD: dict[str, Any] = {
    "kernel": "6.18.1-generic",
    "machine": "x86_64",
    "uid": 1000,
    "may_mount": False,
    "maps_itself": True,
    "landlock_abi": 6,
    "seccomp": True,
    "cgroup_version": 2,
    "cgroup_writable": True,
    "cgroup_scope": "",
    "user_namespaces": True,
    "user_namespaces_error": "",
    "chroot": False,
    "apparmor_restricts_userns": False,
    "max_user_namespaces": 1000,
    "unprivileged_userns_clone": 1,
    "kvm": False,
    "kvm_error": "",
    "kvm_fix": "",
    "yama_ptrace_scope": None,
    "container": "",
    "seccomp_filter": False,
    "proc_masked": False,
    "apparmor_profile": "",
    "subordinate_ids": "",
}


def _blockers(error: str = "words", **facts: Any) -> list[tuple[str, str]]:
    found = report.blockers(Facts(**{**GOOD, **facts}), error)
    return [(blocker.what, blocker.fix) for blocker in found]


@pytest.mark.parametrize(
    ("facts", "what", "fix"),
    [
        ({"max_user_namespaces": 0}, "switched off", "sysctl -w user.max_user_namespaces=65536"),
        (
            {"unprivileged_userns_clone": 0},
            "ordinary users may not",
            "sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        ({"apparmor_restricts_userns": True}, "AppArmor", "/etc/apparmor.d/agentd"),
        ({"chroot": True}, "this is a chroot", "systemd-nspawn"),
        ({"seccomp": False}, "seccomp", "CONFIG_SECCOMP_FILTER"),
        ({"kernel": "5.11.22"}, "kernel 5.11.22 is too old", "5.12"),
    ],
)
def test_a_fact_that_stands_in_the_way_is_named_with_its_fix(
    facts: dict[str, Any], what: str, fix: str
) -> None:
    ((said, mend),) = _blockers(**facts)
    assert what in said
    assert fix in mend
    assert "words" not in said


def test_the_apparmor_fix_names_this_interpreter_and_can_be_pasted() -> None:
    ((_, fix),) = _blockers(apparmor_restricts_userns=True)
    assert f"profile agentd {os.path.realpath(sys.executable)} " in fix
    assert "{{" not in fix
    assert "apparmor_parser -r" in fix


def test_root_is_not_told_of_what_binds_ordinary_users() -> None:
    said = _blockers(
        uid=0, may_mount=True, apparmor_restricts_userns=True, unprivileged_userns_clone=0
    )
    assert [what for what, _ in said] == ["words"]


def test_the_kernels_own_words_where_no_fact_fits() -> None:
    assert _blockers("mount: Operation not permitted")[0][0] == "mount: Operation not permitted"


def test_all_that_stands_in_the_way_is_named() -> None:
    assert len(_blockers(max_user_namespaces=0, seccomp=False, kernel="4.4")) == 3


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.44-generic", (6, 18)), ("5.12", (5, 12)), ("6.1.0-13-amd64", (6, 1))],
)
def test_versions(release: str, version: tuple[int, int]) -> None:
    assert report.kernel_version(release) == version


LENT = {"/workspace": "idmapped", "/data": "idmapped"}


def _table(controls: tuple[str, ...] = STEPS, **spec: Any) -> Any:
    plan = make_plan(SandboxSpec(**spec))
    return report.enforcement(
        plan, controls, None, "no cgroup, because", own_user=True, digest="d1", shown=9, lent=LENT
    )


def test_a_step_left_out_is_not_claimed() -> None:
    names = {
        "no_new_privs": "no_new_privs",
        "capabilities": "capabilities",
        "dumpable": "agent_protected",
        "seccomp": "seccomp",
        "landlock": "landlock",
    }
    for step, entry in names.items():
        table = _table(tuple(name for name in STEPS if name != step))
        assert table[entry].enforced is False
        assert table[entry].detail
        assert all(
            table[other].enforced for s, other in names.items() if s not in (step, "landlock")
        )


def test_without_a_cgroup_the_rlimit_holds_the_processes() -> None:
    table = _table(limits=Limits(pids=7))
    assert (table["pids"].asked, table["pids"].enforced) == ("7", True)
    assert "RLIMIT_NPROC" in table["pids"].detail
    assert table["memory"].enforced is False
    assert table["memory"].detail == "no cgroup, because"
    assert _table(("seccomp",))["pids"].enforced is False


def test_networks() -> None:
    assert _table()["network"].enforced is True
    shared = _table(net="host")["network"]
    assert (shared.asked, shared.enforced) == ("host", False)


def test_each_mount_is_listed() -> None:
    table = _table(mounts=(Mount("/host", "/data", MountMode.RO),))
    assert table["mount /data"].asked == "ro"
    assert "/host" in table["mount /data"].detail
