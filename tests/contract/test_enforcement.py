"""The suite of every wall, over ours: what they must report, and that the kernel says so, too."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentd import Refused, Sandbox
from agentd.testing.walls.claims import reports
from agentd.testing.walls.test_enforcement import *

CONFINED = {"landlock", "seccomp", "capabilities", "no_new_privs", "agent_protected", "network"}
MACHINE = {"virtual_machine", "identity", "network"} | {
    f"monitor_{name}" for name in ("user", "landlock", "seccomp", "capabilities", "no_new_privs")
}
SENTRY = {"userspace_kernel", "sentry", "capabilities", "no_new_privs", "network"}

confined = pytest.mark.parametrize("kind", ["landlock", "linux"], indirect=True)
Status = Callable[[Sandbox], dict[str, str]]


def test_our_walls_report_what_they_are_made_of(kind: Any, sandbox: Sandbox) -> None:
    """So that none of the suite's cases is skipped where it must hold."""
    wanted = CONFINED if kind.confined else MACHINE if kind.machine else {"isolation"}
    wanted = SENTRY if kind.sentry else wanted
    assert wanted <= set(sandbox.enforcement)
    for control in SPACES:
        assert reports(sandbox, control) is kind.namespaces
    assert reports(sandbox, "network") is kind.apart
    if kind.confined:
        assert all(reports(sandbox, control) for control in CONFINED)
    if kind.sentry:
        held = SENTRY if os.getuid() == 0 else SENTRY - {"sentry"}  # it is the caller's own user
        assert all(reports(sandbox, control) for control in held)
        # What gVisor's kernel has not, it says of itself: of this one's there is nothing to ask.
        assert not any(reports(sandbox, name) for name in ("landlock", "seccomp"))


@pytest.mark.shares_machine
def test_the_kernel_agrees(kind: Any, sandbox: Sandbox, agent_status: Status) -> None:
    said, status = sandbox.enforcement, agent_status(sandbox)
    if not kind.apart:
        assert said["isolation"].enforced is False
        return
    if kind.sentry:
        # It sees gVisor's kernel alone, which is behind a filter, and holds no right over the host.
        assert status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"
        # The one that commands have says the same of them.
        assert "CapBnd:\t0000000000000000" in sandbox.run("cat /proc/self/status").text
        return
    # Of a virtual machine the host's kernel sees the monitor.
    who = "monitor_" if kind.machine else ""
    assert said[f"{who}seccomp"].enforced is (status["Seccomp"] == "2") is True
    assert said[f"{who}no_new_privs"].enforced is (status["NoNewPrivs"] == "1") is True
    held = any(int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Amb"))
    assert said[f"{who}capabilities"].enforced is not held
    # Firecracker's is its jailer's to do.
    if kind.name != "firecracker":
        bounded = said[f"{who}capabilities"].detail.startswith("none in any set")
        assert bounded is (int(status["CapBnd"], 16) == 0)


@pytest.mark.shares_machine
def test_a_wall_runs_nothing_as_its_caller_if_that_is_root(
    kind: Any, sandbox: Sandbox, agent_status: Status
) -> None:
    uids = {int(uid) for uid in agent_status(sandbox)["Uid"].split()}
    if kind.apart and os.getuid() == 0:
        assert os.getuid() not in uids
    else:
        assert uids == {os.getuid()}


@pytest.mark.parametrize("kind", ["fake", "host"], indirect=True)
def test_without_a_wall_all_is_within_reach(
    sandbox: Sandbox, service: str, open_folder: Path
) -> None:
    assert reaches(sandbox, service)
    assert sandbox.run(["cat", f"{open_folder}/secret"]).text == "secret"
    sandbox.run(["rm", "-f", f"{open_folder}/secret"])
    assert os.listdir(open_folder) == []


def test_the_hosts_network_is_that(kind: Any, make: Callable[..., Sandbox], service: str) -> None:
    if kind.name in ("firecracker", "gvisor"):
        with pytest.raises(Refused, match="network") as caught:
            make(net="host")
        assert "--backend" in caught.value.remediation
        return
    sandbox = make(net="host")
    # A virtual machine has a loopback of its own; the gateway of its network stands for the host's.
    address = service.replace("127.0.0.1", "10.0.2.2") if kind.machine else service
    assert reaches(sandbox, address)


@confined
def test_a_set_uid_program_gains_nothing(sandbox: Sandbox, agent_status: Status) -> None:
    assert agent_status(sandbox)["NoNewPrivs"] == "1"
    assert sandbox.run("id -u").text == sandbox.run("su -c 'id -u' 2>/dev/null || id -u").text
