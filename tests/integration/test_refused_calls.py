"""Walls where a seccomp profile around agentd refuses a system call: each works with the control
told, or is refused with the call's name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentd.linux import abi

LAUNCHER = str(Path(__file__).parents[1] / "without_call.py")

pytestmark = pytest.mark.skipif(abi.MACHINE != "x86_64", reason="the launcher knows x86-64's calls")


def _run(
    refused: str, level: str, *words: str, wall: str = ""
) -> "subprocess.CompletedProcess[str]":
    """``wall`` is that of the level, if not named."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
    wall = wall or {"namespace": "linux", "process": "landlock"}[level]
    return subprocess.run(
        [
            *(sys.executable, LAUNCHER, refused, "--"),
            *(sys.executable, "-m", "agentd", "run", "--embedded", "--backend", wall, *words),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=kept,
        timeout=300,
        check=False,
    )


def _report(refused: str, level: str) -> Any:
    done = _run(refused, level, "--json", "--", "sh", "-c", "echo ok | cat")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["stdout"] == "ok\n"
    return result["enforcement"]


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
@pytest.mark.parametrize(("call", "control"), [
    ("sethostname", "hostname"),
    ("landlock_create_ruleset", "landlock"),
    ("landlock_restrict_self", "landlock"),
])  # fmt: skip
def test_it_is_one_control_less(call: str, control: str, error: str) -> None:
    table = _report(f"{call}={error}", "namespace")
    assert not table[control]["enforced"] and table[control]["detail"]
    others = ("user_namespace", "pid_namespace", "mount_namespace", "seccomp", "capabilities")
    assert all(table[name]["enforced"] for name in others)


def test_without_it_all_of_them_hold() -> None:
    table = _report("bpf=EPERM", "namespace")
    assert table["hostname"]["enforced"] and table["landlock"]["enforced"]


def test_clone3_is_made_up_for() -> None:
    assert _report("clone3=ENOSYS", "namespace")["pid_namespace"]["enforced"]


@pytest.mark.parametrize("level", ["namespace", "process"])
def test_a_clone3_that_the_c_library_cannot_make_up_for_is_told(level: str) -> None:
    """As by Docker before 20.10.10: no thread and no program can be started."""
    done = _run("clone3=EPERM", level, "--", "true")
    assert done.returncode == 125
    assert "clone3: refused here" in done.stderr and "20.10.10" in done.stderr, done.stderr


def test_a_daemon_without_threads_says_so(tmp_path: Path) -> None:
    words = [
        sys.executable,
        LAUNCHER,
        "clone3=EPERM",
        "--",
        sys.executable,
        "-m",
        "agentd",
        "serve",
    ]
    done = subprocess.run(
        [*words, "--state", str(tmp_path), "--listen", f"unix:{tmp_path}/socket"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 125
    assert "no thread can be started" in done.stderr and "doctor" in done.stderr, done.stderr


def test_our_own_clone_makes_up_for_it_whatever_the_answer() -> None:
    """Where the C library is older than its use of clone3."""
    code = (
        "import os\nfrom agentd.linux.clone import Cloner\npid, pidfd = Cloner().clone(0)\n"
        "os._exit(7) if pid == 0 else print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    words = [sys.executable, LAUNCHER, "clone3=EPERM", "--", sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "7\n", done.stderr


@pytest.mark.root
@pytest.mark.parametrize("call", ["unshare", "mount", "mount_setattr"])
def test_the_process_level_of_root_tells_that_it_has_no_mount_namespace(call: str) -> None:
    assert not _report(f"{call}=ENOSYS", "process")["host_files"]["enforced"]


@pytest.mark.parametrize(("level", "call"), [
    ("namespace", "pidfd_send_signal"),
    ("namespace", "prlimit64"),
    ("namespace", "capset"),
    ("namespace", "mount"),
    ("namespace", "open_tree"),
    ("namespace", "unshare"),
    ("process", "signalfd4"),
    ("process", "pidfd_open"),
    ("process", "landlock_restrict_self"),
])  # fmt: skip
def test_it_is_refused_by_its_name(level: str, call: str) -> None:
    done = _run(f"{call}=EPERM", level, "--", "true")
    assert done.returncode == 125
    assert call in done.stderr and "internal error" not in done.stderr, done.stderr


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
@pytest.mark.parametrize("call", ["landlock_add_rule", "landlock_restrict_self"])
def test_doctor_tells_of_a_wall_that_only_its_last_call_is_refused(call: str, error: str) -> None:
    words = [sys.executable, LAUNCHER, f"{call}={error}", "--"]
    done = subprocess.run(
        [*words, sys.executable, "-m", "agentd", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    walls = {wall["name"]: wall for wall in json.loads(done.stdout)["backends"]}
    assert not walls["landlock"]["usable"], done.stdout
    (blocker,) = walls["landlock"]["blockers"]
    assert call in blocker["what"] and "seccomp" in blocker["fix"]


@pytest.mark.parametrize("wall", ["linux", "oci"])
def test_a_kernel_without_netfilter_restricts_no_network_and_says_so(wall: str) -> None:
    words = ("--net", "db.example", "--", "true")
    done = _run("socket:netfilter=EPROTONOSUPPORT", "namespace", *words, wall=wall)
    assert done.returncode == 125
    assert "a network cannot be restricted to rules here" in done.stderr, done.stderr
    assert "modprobe -a nf_tables" in done.stderr
    assert _report("socket:netfilter=EPROTONOSUPPORT", "namespace")["network"]["enforced"]


def test_doctor_tells_of_a_kernel_without_netfilter() -> None:
    words = [sys.executable, LAUNCHER, "socket:netfilter=EPROTONOSUPPORT", "--"]
    done = subprocess.run(
        [*words, sys.executable, "-m", "agentd", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    told = json.loads(done.stdout)
    (part,) = (part for part in told["parts"] if part["name"] == "net rules")
    (blocker,) = part["blockers"]
    assert not part["usable"] and "nft_redir" in blocker["what"], part
    assert "modprobe -a nf_tables" in blocker["fix"]
    # A machine has a kernel of its own.
    (qemu,) = (wall["usable"] for wall in told["backends"] if wall["name"] == "qemu")
    assert ("--backend qemu" in blocker["fix"]) is qemu
    assert told["run"]["blocker"] is None  # of networks there are others
