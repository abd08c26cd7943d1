"""sys.setup's request, and the machine's parts that need no machine."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentd.guest import vm, vm_net, vm_root
from agentd.guest.operation import RequestError
from agentd.guest.vm_group import GuestGroup
from agentd.guest.vm_root import Shared
from agentd.guest.vm_setup import Setup
from agentd.linux.clone import Cloner

NET = {"address": "10.0.2.15/24", "gateway": "10.0.2.2", "dns": ["10.0.2.3"]}
AUTHORITY = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
ROOT = {
    "disk": "image",
    "writable": True,
    "places": [["/app", True]],
    "shares": [{"tag": "s", "target": "/d", "readonly": True}],
    "shown": ["/tmp"],
    "workdir": "/app",
    "env": {"A": "b"},
}
CONFIGURE = """
from agentd.guest import vm_net
import sys
address, mask = vm_net.parse("10.9.8.7/20")
for _ in range(2):
    vm_net.configure("lo:1", address, mask, vm_net.parse_host("10.9.0.1"))
"""


def test_nothing_asked_for_is_nothing_set() -> None:
    setup = Setup({"op": "sys.setup"})
    fields = vars(setup)
    assert set(fields.values()) == {None}


def test_everything_can_be_asked_for() -> None:
    setup = Setup(
        {
            "op": "sys.setup",
            "entropy": "AAEC",
            "unix_ns": 5,
            "hostname": "Box-1.example",
            "machine_id": "0" * 32,
            "boot_id": "00000000-0000-4000-8000-000000000000",
            "user": 0,
            "env": {"A": "b"},
            "cpus": 0.5,
            "limits": {"memory": 1 << 26, "pids": 1, "disk": 4096, "open_files": 8},
            "net": NET,
            "root": ROOT,
        }
    )
    assert (setup.entropy, setup.unix_ns, setup.user, setup.cpus) == (b"\0\1\2", 5, 0, 0.5)
    assert (setup.memory, setup.pids, setup.disk, setup.open_files) == (1 << 26, 1, 4096, 8)
    assert setup.net is not None
    assert (setup.net.address, setup.net.mask) == (b"\n\0\2\x0f", b"\xff\xff\xff\0")
    assert setup.root is not None
    assert (setup.root.serial, setup.root.writable, setup.root.workdir) == ("image", True, "/app")
    assert (setup.root.places, setup.root.shares) == ([("/app", True)], [Shared("s", "/d", True)])
    assert (setup.root.env, setup.root.shown) == ({"A": "b"}, ["/tmp"])
    assert (setup.net.gateway, setup.net.dns, setup.net.device) == (b"\n\0\2\2", ["10.0.2.3"], None)
    assert setup.net.relay is None
    dials = Setup({"op": "sys.setup", "net": {"relay": 1019}}).net
    assert dials is not None and (dials.relay, dials.authority) == (1019, None)
    dials = Setup({"op": "sys.setup", "net": {"relay": 1019, "authority": AUTHORITY}}).net
    assert dials is not None and dials.authority == AUTHORITY


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"limits": {"memory": 1}}, "'memory' must be an integer from"),
        ({"limits": {"disks": 1}}, "limits has no field 'disks'"),
        ({"limit": {}}, "sys.setup has no field 'limit'"),
        ({"hostname": "a\n"}, "'hostname' must be"),
        ({"hostname": "../x"}, "'hostname' must be"),
        ({"machine_id": "A" * 32}, "'machine_id' must be 32 hexadecimal digits"),
        ({"boot_id": 5}, "'boot_id' must be a string"),
        ({"cpus": True}, "'cpus' must be a number"),
        ({"cpus": float("nan")}, "'cpus' must be a number"),
        ({"env": {"A": "b\0"}}, "'env' must be an object of at most"),
        ({"env": {str(n): "" for n in range(257)}}, "'env' must be an object of at most 256"),
        ({"net": NET | {"dns": ["10.0.2.3"] * 9}}, "'dns' must be a list of at most 8"),
        ({"net": NET | {"dns": ["x\nnameserver 1.1.1.1"]}}, "is no IPv4 address"),
        ({"net": {"gateway": "10.0.0.1"}}, "is no IPv4 address with a prefix"),
        ({"net": NET | {"address": "fe80::1/64"}}, "is no IPv4 address"),
        ({"net": {"relay": 0}}, "'relay' must be an integer from 1"),
        ({"net": {"relay": "1019"}}, "'relay' must be an integer from 1"),
        ({"net": NET | {"relay": 1019}}, "net has no field"),
        ({"net": NET | {"authority": AUTHORITY}}, "net has no field 'authority'"),
        ({"net": {"relay": 1019, "authority": 5}}, "'authority' must be a string"),
        ({"net": {"relay": 1019, "authority": "x"}}, "'authority' must be a certificate, PEM"),
        ({"net": {"relay": 1019, "authority": AUTHORITY * 2}}, "'authority' must be a certif"),
        ({"root": {}}, "'disk' must be a string"),
        ({"root": ROOT | {"disk": "../x"}}, "'disk' must be a serial number"),
        ({"root": ROOT | {"disks": ""}}, "root has no field 'disks'"),
        ({"root": ROOT | {"writable": 1}}, "'writable' must be true or false"),
        ({"root": ROOT | {"places": [["/a/../../b", True]]}}, "a path must not have '..'"),
        ({"root": ROOT | {"places": [["a", True]]}}, "a path must be absolute"),
        ({"root": ROOT | {"places": [["/a"]]}}, "each of 'places' must be a path"),
        ({"root": ROOT | {"places": [["/a", True]] * 65}}, "'places' must be a list of at most"),
        ({"root": ROOT | {"shares": [{"tag": "s"}]}}, "a path must be absolute"),
        ({"root": ROOT | {"shares": [{"target": "/a"}]}}, "'tag' must be a string"),
        ({"root": ROOT | {"workdir": "/\0"}}, "a path must be absolute"),
        ({"root": ROOT | {"shown": ["/etc"]}}, "'shown' must be some of /tmp, "),
        ({"root": ROOT | {"env": {"A": 1}}}, "'env' must be an object"),
    ],
)
def test_what_is_malformed_is_named(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(RequestError) as caught:
        Setup({"op": "sys.setup", **fields})
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("address", "mask"), [("1.2.3.4/1", "128.0.0.0"), ("1.2.3.4/32", "255.255.255.255")]
)
def test_the_ends_of_the_prefix(address: str, mask: str) -> None:
    assert vm_net.parse(address) == (b"\1\2\3\4", vm_net.parse_host(mask))


@pytest.mark.root
def test_a_card_is_configured_twice_over() -> None:
    script = f"ip link set lo up; {sys.executable} -c '{CONFIGURE}'; ip addr; ip route"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-ec", script],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "inet 10.9.8.7/20" in done.stdout
    assert "default via 10.9.0.1" in done.stdout


def test_a_card_that_is_not_there_is_no_device() -> None:
    with pytest.raises(OSError, match="no network device"):
        vm_net.configure("x" * 16, b"\1\2\3\4", b"\xff\0\0\0", None)


def test_here_is_no_machine() -> None:
    """A container's init must not set the host's clock."""
    assert not vm.is_machine()


def test_a_group_of_plain_files_is_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").touch()
    folder = tmp_path / "sandbox"
    folder.mkdir()
    for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max"):
        (folder / name).touch()
    (folder / "memory.events").write_text("low 1\noom 5\noom_kill 3\noom_group_kill 9\n")
    (folder / "pids.events").write_text("max 7\n")
    (folder / "memory.current").write_text("4096\n")
    with contextlib.closing(GuestGroup(str(tmp_path))) as group:
        assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
        assert group.limit_memory(64 << 20) == 64 << 20
        group.limit_pids(5)
        group.limit_cpus(1.5)
        assert group.hits() == {"oom": 3, "pids_limit": 7}
        assert group.usage() == {"memory_bytes": 4096}
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert group.limit_memory(1 << 60) == group.limit_memory(None) < total
    assert (folder / "pids.max").read_text() == "5"
    assert (folder / "cpu.max").read_text() == "150000 100000"


def test_a_clone_into_what_is_no_group_fails(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError):
            Cloner().clone(0, fd)
        # And the next one is not asked into it.
        pid, pidfd = Cloner().clone(0)
        if pid == 0:
            os._exit(7)
        os.close(pidfd)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    finally:
        os.close(fd)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> vm.GuestMachine:
    monkeypatch.setattr(vm, "STATE", str(tmp_path))
    monkeypatch.setattr(vm, "_STATE_FILE", str(tmp_path / "state.json"))
    processes = SimpleNamespace(spawn_in=lambda wrap, group=-1: None)
    agent = SimpleNamespace(processes=processes, loop=None, extend=lambda *_, **__: None)
    return vm.GuestMachine(agent)  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [{}, {"user": None}])
def test_a_command_of_nobody_in_particular_is_the_sandboxes_users(
    machine: vm.GuestMachine, more: dict[str, object]
) -> None:
    """The agent is root, and whom it becomes is what the request says."""
    filled = machine.defaults({"argv": ["id"], **more})
    assert filled["user"] == vm.USER
    assert filled["env"]["LOGNAME"] == "sandbox"  # type: ignore[index]
    assert machine.defaults({"argv": ["id"], "user": 0})["user"] == 0


def test_what_is_not_written_down_leaves_what_was(machine: vm.GuestMachine, tmp_path: Path) -> None:
    """An agent that is started again does not begin without its limits and its user."""
    machine.env = {"A": "b"}
    machine._save()
    kept = (tmp_path / "state.json").read_bytes()
    machine.env = {"A": object()}  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        machine._save()
    assert (tmp_path / "state.json").read_bytes() == kept


@pytest.mark.parametrize("hides", ["home", "run"])
def test_files_of_ours_are_in_an_etc_that_is_seen_whatever_links_lead_to_it(
    hides: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/home and /run are folders of ours there, above the places that the machine has in them."""
    image, top = tmp_path / "image", tmp_path / "top"
    (image / "own/etc").mkdir(parents=True)
    (image / hides).symlink_to("own")
    (image / "etc").symlink_to(f"{hides}/etc")
    monkeypatch.setattr(vm_root, "_IMAGE", str(image))
    monkeypatch.setattr(vm_root, "_TOP", str(top))
    vm_root._make_places([("/data", True)])
    assert (top / "etc/hosts").is_file()
    assert not (top / "own").exists()
    assert (top / "data").is_dir()
