"""What a wall says of itself is what the kernel says of it."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.client.sandbox import Sandbox
from agentd.model.errors import Refused

LIMITS = {"memory", "pids", "disk", "open_files"}
CONFINED = {"landlock", "seccomp", "capabilities", "no_new_privs", "agent_protected", "network"}
MACHINE = {"virtual_machine", "identity", "network"} | {
    f"monitor_{name}" for name in ("user", "landlock", "seccomp", "capabilities", "no_new_privs")
}
SPACES = {
    "user_namespace": "user",
    "pid_namespace": "pid",
    "mount_namespace": "mnt",
    "ipc_namespace": "ipc",
    "uts_namespace": "uts",
    "cgroup_namespace": "cgroup",
}
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[2], int(sys.argv[1])), 5).close()
    print("through")
except OSError:
    print("none")
"""

confined = pytest.mark.parametrize("kind", ["landlock", "linux"], indirect=True)
Status = Callable[[Sandbox], dict[str, str]]


@pytest.mark.shares_machine
def test_every_control_has_an_entry(kind: Any, sandbox: Sandbox) -> None:
    wanted = set(LIMITS)
    wanted |= CONFINED if kind.confined else MACHINE if kind.machine else {"isolation"}
    wanted |= set(SPACES) if kind.namespaces else set()
    assert wanted <= set(sandbox.enforcement)
    for name, control in sandbox.enforcement.items():
        assert control.asked, name
        assert isinstance(control.enforced, bool), name
        assert control.detail or control.enforced, f"{name} does not say why not"


@pytest.mark.shares_machine
def test_each_result_carries_them(sandbox: Sandbox) -> None:
    result = sandbox.run(["true"])
    assert result.enforcement == dict(sandbox.enforcement)
    assert result.sandbox == sandbox.info
    assert result.sandbox.id == sandbox.id


@pytest.mark.shares_machine
def test_the_kernel_agrees(kind: Any, sandbox: Sandbox, agent_status: Status) -> None:
    said, status = sandbox.enforcement, agent_status(sandbox)
    if not kind.apart:
        assert said["isolation"].enforced is False
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


@pytest.mark.shares_machine
def test_namespaces_are_new_ones(kind: Any, sandbox: Sandbox) -> None:
    ours = {name: os.readlink(f"/proc/self/ns/{name}") for name in SPACES.values()}
    for control, name in SPACES.items():
        claimed = control in sandbox.enforcement and sandbox.enforcement[control].enforced
        assert claimed is kind.namespaces
        if claimed:
            inside = sandbox.run(["readlink", f"/proc/self/ns/{name}"]).text.strip()
            assert inside.startswith(f"{name}:")
            assert inside != ours[name]


@pytest.fixture
def service() -> Iterator[str]:
    """The port of a service on the host's loopback; the kernel itself takes its connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


def _reaches(sandbox: Sandbox, port: str, host: str = "127.0.0.1") -> bool:
    result = sandbox.run(["/usr/bin/python3", "-I", "-c", CONNECT, port, host])
    assert result.exit_code == 0, result.stderr
    return result.text == "through\n"


def test_no_network_means_none(kind: Any, make: Callable[..., Sandbox], service: str) -> None:
    sandbox = make(net="none")
    claimed = sandbox.enforcement.get("network")
    assert _reaches(sandbox, service) is not kind.apart
    assert (claimed is not None and claimed.enforced) is kind.apart


def test_the_hosts_network_is_that(kind: Any, make: Callable[..., Sandbox], service: str) -> None:
    if kind.name == "firecracker":
        with pytest.raises(Refused, match="has no network") as caught:
            make(net="host")
        assert "--backend qemu" in caught.value.remediation
        return
    sandbox = make(net="host")
    # A virtual machine has a loopback of its own; the gateway of its network stands for the host's.
    assert _reaches(sandbox, service, "10.0.2.2" if kind.machine else "127.0.0.1")
    if "network" in sandbox.enforcement:
        assert sandbox.enforcement["network"].asked == "host"
        assert sandbox.enforcement["network"].enforced is False


@pytest.mark.shares_machine
def test_files_of_the_caller_are_out_of_reach(kind: Any, sandbox: Sandbox, folder: Path) -> None:
    secret = folder / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    result = sandbox.run(["cat", str(secret)])
    assert (b"secret" in result.stdout) is not kind.apart
    sandbox.run(["rm", "-f", str(secret)])
    assert secret.exists() is kind.apart


@confined
def test_signals_to_the_caller_do_not_arrive(sandbox: Sandbox) -> None:
    # Signal 0 only asks whether one could be sent.
    assert sandbox.run(f"kill -0 {os.getpid()}").exit_code != 0


@confined
def test_a_set_uid_program_gains_nothing(sandbox: Sandbox, agent_status: Status) -> None:
    assert agent_status(sandbox)["NoNewPrivs"] == "1"
    assert sandbox.run("id -u").text == sandbox.run("su -c 'id -u' 2>/dev/null || id -u").text
