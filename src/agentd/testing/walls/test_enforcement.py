"""What a wall reports as enforced is: each control is looked for where it must hold."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentd import AgentdError, Sandbox
from agentd.testing.walls.claims import FILES, OWN_KERNEL, claimed, granted, needs, reports

pytestmark = pytest.mark.shares_machine

LIMITS = {"memory", "pids", "disk", "open_files"}
SPACES = {
    "user_namespace": "user",
    "pid_namespace": "pid",
    "mount_namespace": "mnt",
    "ipc_namespace": "ipc",
    "uts_namespace": "uts",
    "cgroup_namespace": "cgroup",
}
# prctl(2), capget(2) and ptrace(2) of the command itself: where there is no /proc, too.
ITSELF = """
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(header, data)
agent = os.getppid()
reached = ["trace"] if libc.ptrace(0x4206, agent, 0, 0) == 0 else []
for name in ("mem", "environ", "maps"):
    try:
        open(f"/proc/{agent}/{name}", "rb").read(1)
        reached.append(name)
    except OSError:
        pass
print(json.dumps({
    "seccomp": libc.prctl(21, 0, 0, 0, 0), "no_new_privs": libc.prctl(39, 0, 0, 0, 0),
    "capabilities": sum(data), "uid": os.getuid(), "agent": reached,
}))
"""
CONNECT = """
import socket, sys
address = sys.argv[1]
try:
    if address.startswith("@"):
        made = socket.socket(socket.AF_UNIX)
        made.connect("\\0" + address[1:])
    else:
        host, _, port = address.partition(":")
        made = socket.create_connection((host, int(port)), 5)
    made.close()
    print("through")
except OSError:
    print("none")
"""


def test_every_control_says_what_was_asked_and_by_what_it_holds(sandbox: Sandbox) -> None:
    assert set(sandbox.enforcement) >= LIMITS
    for name, control in sandbox.enforcement.items():
        assert control.asked, name
        assert isinstance(control.enforced, bool), name
        assert control.detail or control.enforced, f"{name} does not say why not"


def test_each_result_carries_them(sandbox: Sandbox) -> None:
    result = sandbox.run(["true"])
    assert result.enforcement == dict(sandbox.enforcement)
    assert result.sandbox == sandbox.info
    assert result.sandbox.id == sandbox.id


# --- what a command knows of itself ---


def python(sandbox: Sandbox, script: str, *arguments: str) -> str:
    """Run the script with the Python inside; skips where there is none."""
    needs(sandbox, "/usr/bin/python3")
    result = sandbox.run(["/usr/bin/python3", "-I", "-c", script, *arguments])
    assert result.exit_code == 0, result.stderr
    return result.text


def itself(sandbox: Sandbox) -> dict[str, object]:
    found: dict[str, object] = json.loads(python(sandbox, ITSELF))
    return found


def test_seccomp_filters_each_command(sandbox: Sandbox) -> None:
    claimed(sandbox, "seccomp")
    assert itself(sandbox)["seccomp"] == 2


def test_no_new_privs_is_set(sandbox: Sandbox) -> None:
    claimed(sandbox, "no_new_privs")
    assert itself(sandbox)["no_new_privs"] == 1


def test_commands_have_no_capabilities(sandbox: Sandbox) -> None:
    claimed(sandbox, "capabilities")
    assert itself(sandbox)["capabilities"] == 0


def test_commands_are_another_user_than_root(sandbox: Sandbox) -> None:
    claimed(sandbox, "user")
    assert itself(sandbox)["uid"] != 0


def test_the_agent_cannot_be_traced_or_read(sandbox: Sandbox) -> None:
    claimed(sandbox, "agent_protected")
    assert itself(sandbox)["agent"] == []


@pytest.mark.parametrize("control", SPACES)
def test_a_namespace_is_a_new_one(sandbox: Sandbox, control: str) -> None:
    claimed(sandbox, control)
    space = SPACES[control]
    inside = sandbox.run(["readlink", f"/proc/self/ns/{space}"], check=True).text.strip()
    assert inside.startswith(f"{space}:")
    assert inside != os.readlink(f"/proc/self/ns/{space}")


def test_a_kernel_of_its_own_is_another(sandbox: Sandbox) -> None:
    claimed(sandbox, *OWN_KERNEL)
    asked = ["/proc/version", "/proc/sys/kernel/random/boot_id"]
    inside = [sandbox.run(["cat", path]).text for path in asked]
    assert inside[0]
    assert inside != [Path(path).read_text() for path in asked]


# --- what is outside ---


@pytest.fixture
def service() -> Iterator[str]:
    """A service on the host's loopback; the kernel itself takes its connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def abstract() -> Iterator[str]:
    """A socket of the host with a name and no file."""
    name = f"agentd-walls-{os.urandom(8).hex()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        yield f"@{name}"


def reaches(sandbox: Sandbox, address: str) -> bool:
    return python(sandbox, CONNECT, address) == "through\n"


def test_no_network_means_none(make: Callable[..., Sandbox], service: str) -> None:
    sandbox = make(net="none")
    claimed(sandbox, "network")
    assert sandbox.enforcement["network"].asked == "none"
    # A virtual machine's gateway may stand for the host's loopback: QEMU's does by this address.
    for address in (service, service.replace("127.0.0.1", "10.0.2.2")):
        assert not reaches(sandbox, address), address


def test_abstract_sockets_of_the_host_are_out_of_reach(sandbox: Sandbox, abstract: str) -> None:
    claimed(sandbox, "network")
    assert not reaches(sandbox, abstract)


def test_the_hosts_network_is_reported_as_that(make: Callable[..., Sandbox]) -> None:
    sandbox = granted(make, net="host")
    assert not reports(sandbox, "network")


@pytest.fixture
def open_folder(folder: Path) -> Path:
    """One that every user may write to: nothing but the wall is in the way."""
    folder.chmod(0o777)
    (folder / "secret").write_text("secret")
    (folder / "secret").chmod(0o666)
    return folder


def test_files_of_the_caller_are_not_read(sandbox: Sandbox, open_folder: Path) -> None:
    claimed(sandbox, *FILES)
    assert b"secret" not in sandbox.run(["cat", f"{open_folder}/secret"]).stdout
    with pytest.raises(AgentdError):
        sandbox.files.read(f"{open_folder}/secret")


def test_files_of_the_caller_are_not_written(sandbox: Sandbox, open_folder: Path) -> None:
    claimed(sandbox, *FILES)
    sandbox.run(f"echo more >> {open_folder}/secret; echo x > {open_folder}/made")
    sandbox.run(["rm", "-f", f"{open_folder}/secret"])
    assert sorted(os.listdir(open_folder)) == ["secret"]
    assert (open_folder / "secret").read_text() == "secret"


def test_signals_to_the_caller_do_not_arrive(sandbox: Sandbox) -> None:
    claimed(sandbox, "pid_namespace", "landlock", *OWN_KERNEL)
    # Signal 0 only asks whether one could be sent.
    assert sandbox.run(f"kill -0 {os.getpid()}").exit_code != 0
