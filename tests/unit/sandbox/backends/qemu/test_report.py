"""What the wall says of itself follows from what was really done."""

from agentd.model.limits import MIB, Limits
from agentd.model.mount import Mount, MountMode
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.qemu import report
from agentd.sandbox.backends.qemu.plan import QemuMachine, make_plan
from agentd.sandbox.backends.qemu.shares import Share

ALL = ["user", "capabilities", "no_new_privs", "landlock", "seccomp"]
SETUP = [
    "entropy",
    "clock",
    "machine_id",
    "boot_id",
    "memory",
    "pids",
    "disk",
    "open_files",
    "cpus",
]
MACHINE = QemuMachine(256 * MIB, 1)


def _said(
    spec: SandboxSpec,
    controls: dict[str, list[str]],
    setup: list[str],
    machine: QemuMachine = MACHINE,
) -> dict[str, bool]:
    shares = [Share("share0", -1, 0, 0, mount, True) for mount in spec.mounts]
    table = report.enforcement(
        make_plan(spec), machine, controls, setup, None, "no cgroups here", shares
    )
    for name, control in table.items():
        assert control.asked, name
        assert control.detail, name
    return {name: control.enforced for name, control in table.items()}


def test_everything_that_was_done_is_said_to_hold() -> None:
    spec = SandboxSpec(limits=Limits(cpus=1), mounts=(Mount("/srv", "/data", MountMode.RO),))
    said = _said(spec, {"monitor": ALL, "device": ALL}, SETUP)
    assert {name for name, held in said.items() if not held} == {"host_memory"}
    assert {"virtual_machine", "cpus", "mount /data", "device_seccomp", "monitor_user"} <= set(said)


def test_what_holds_the_helper_of_a_mount_is_what_is_said_of_it() -> None:
    controls = {"monitor": ALL, "share": ALL}
    table = report.enforcement(make_plan(SandboxSpec()), MACHINE, controls, SETUP, None, "none")
    assert "writes no file" in table["monitor_landlock"].detail
    assert "writes there alone, where it is rw" in table["share_landlock"].detail
    assert table["share_seccomp"].detail == "profile share"


def test_what_was_not_done_is_said_not_to_hold() -> None:
    said = _said(SandboxSpec(net="host"), {"monitor": ["no_new_privs"]}, [])
    assert said["monitor_no_new_privs"]
    for name in ("monitor_user", "monitor_landlock", "network", "identity", "memory", "pids"):
        assert not said[name], name


def test_the_kind_of_acceleration_is_said() -> None:
    for accel, words in (("tcg", "software emulation"), ("kvm", "hardware")):
        table = report.enforcement(
            make_plan(SandboxSpec()), QemuMachine(256 * MIB, 1, accel), {}, SETUP, None, ""
        )
        assert table["virtual_machine"].detail.startswith(f"accel={accel}, {words}")
