import os
import subprocess
import time
from pathlib import Path

import pytest

from agentd.model.limits import MIB, Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.firecracker import report
from agentd.sandbox.backends.firecracker.plan import make_plan
from agentd.sandbox.backends.firecracker.version import Version

PLAN = make_plan(SandboxSpec(limits=Limits(memory=64 * MIB)))
MONITOR = ("user", "capabilities", "seccomp", "root", "pid_namespace")


def test_an_ordinary_process_has_none_of_a_jails_controls() -> None:
    held = report.observe(os.getpid(), 2_000_000_001)
    assert not held & {"user", "root", "pid_namespace"}


def test_one_that_has_ended_has_none_at_all() -> None:
    done = subprocess.Popen(["/bin/true"])
    done.wait()
    assert report.observe(done.pid, os.getuid()) == frozenset()


@pytest.mark.root
@pytest.mark.needs("setpriv", "unshare")
def test_what_holds_is_seen() -> None:
    argv = ["setpriv", "--reuid=2000000001", "--clear-groups", "sleep", "60"]
    process = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", *argv])
    try:
        pid = _child(process.pid)
        assert report.observe(pid, 2_000_000_001) >= {"user", "capabilities", "pid_namespace"}
        assert "root" not in report.observe(pid, 2_000_000_001)
    finally:
        process.kill()
        process.wait()


def _child(parent: int) -> int:
    """Once it has become the user, and then the program: it has capabilities between the two."""
    while True:
        with open(f"/proc/{parent}/task/{parent}/children") as file:
            children = file.read().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text() == "sleep\n":
            return int(children[0])
        time.sleep(0.01)


def test_the_table_claims_what_was_seen_and_no_more() -> None:
    nothing = report.enforcement(PLAN, Version(1, 16, 1), (), (), None, "no cgroup is mounted")
    assert {name for name, control in nothing.items() if control.enforced} == {
        "virtual_machine",
        "guest_memory",
        "guest_cpus",
        "network",
    }
    assert nothing["host_memory"].detail == "no cgroup is mounted"
    setup = ("entropy", "machine_id", "boot_id", "clock", "memory", "pids", "disk", "open_files")
    everything = report.enforcement(PLAN, Version(1, 16, 1), MONITOR, setup, None, "")
    assert {name for name, control in everything.items() if not control.enforced} == {"host_memory"}


def test_what_weakens_the_host_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on, off = f"{tmp_path}/on", f"{tmp_path}/off"
    for path, text in ((on, "1\n"), (off, "0\n")):
        with open(path, "w") as file:
            file.write(text)
    switches = ((on, "SMT is on"), (off, "KSM merges"), (f"{tmp_path}/absent", "absent"))
    monkeypatch.setattr(report, "_SWITCHES", switches)
    assert "SMT is on" in report.host_notes()
    assert not {"KSM merges", "absent"} & set(report.host_notes())
