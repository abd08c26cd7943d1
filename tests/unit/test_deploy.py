"""The unit files say what the daemon is made for, and systemd understands them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agentd.client.cli import serve
from agentd.daemon.config import load
from agentd.daemon.config.profiles import preset
from agentd.linux import disk, kvm
from agentd.linux.cgroup import LIMITING
from agentd.linux.cgroup.v2 import LEAF

DEPLOY = Path(__file__).parents[2] / "deploy"
Unit = dict[str, dict[str, list[str]]]


def unit(name: str) -> Unit:
    found: Unit = {}
    section = ""
    for number, line in enumerate((DEPLOY / name).read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = match[1]
            assert section not in found, f"{name}:{number}: twice"
            found[section] = {}
            continue
        key, equals, value = line.partition("=")
        assert section and equals and re.fullmatch(r"[A-Z]\w*", key), f"{name}:{number}: {line}"
        found[section].setdefault(key, []).append(value)
    return found


SERVICE = unit("agentd.service")["Service"]
SOCKET = unit("agentd.socket")["Socket"]


def test_sandboxes_outlive_the_daemon() -> None:
    assert SERVICE["KillMode"] == ["process"]
    assert SERVICE["RuntimeDirectoryPreserve"] == ["yes"]
    assert SERVICE["Delegate"] == [" ".join(sorted(LIMITING))]
    assert SERVICE["DelegateSubgroup"] == [LEAF], "where the daemon moves itself, too"
    assert SERVICE["OOMPolicy"] == ["continue"]


def test_readiness_reload_and_watchdog_are_what_the_daemon_speaks() -> None:
    assert SERVICE["Type"] == ["notify-reload"]
    assert SERVICE["NotifyAccess"] == ["main"]
    assert SERVICE["WatchdogSec"] == ["30s"]
    drain = float(load(None, {}).daemon.drain)
    assert int(SERVICE["TimeoutStopSec"][0].removesuffix("s")) > drain + 10


def test_no_core_dump_has_secrets_and_no_crash_inside_starts_a_handler() -> None:
    """A sandbox's limit is 1, which the kernel takes for no handler, where the hard one allows it:
    ``guest.zygote.limits``."""
    soft, hard = SERVICE["LimitCORE"][0].split(":")
    assert (soft, hard) == ("0", "infinity")


def test_the_command_line_is_one_that_is_understood() -> None:
    program, command, *words = SERVICE["ExecStart"][0].split()
    assert program.endswith("/bin/agentd") and command == "serve"
    assert serve._parser().parse_args(words).config == "/etc/agentd/agentd.toml"


def test_socket_and_folders_are_those_of_the_profiles() -> None:
    state = f"/var/lib/{SERVICE['StateDirectory'][0]}"
    runtime = f"/run/{SERVICE['RuntimeDirectory'][0]}"
    assert SOCKET["ListenStream"] == [f"{runtime}/agentd.sock"]
    root = preset("server", {}, 0)
    assert root["daemon"]["state"] == state
    assert [f"unix:{path}" for path in SOCKET["ListenStream"]] == [root["listen"][0]["address"]]
    assert SOCKET["SocketMode"] == [f"{int(load(None, {}).listen[0].mode):04o}"]


# Each of these is said to be off, and why; somebody who turns it on breaks every sandbox.
@pytest.mark.parametrize(
    "name",
    [
        *("ProtectKernelTunables", "ProtectKernelLogs", "ProtectProc", "ProcSubset"),
        *("ProtectControlGroups", "ProtectHostname", "RestrictNamespaces", "PrivateDevices"),
        *("ProtectClock", "PrivateTmp", "PrivateUsers", "PrivateNetwork", "SystemCallFilter"),
        *("RestrictAddressFamilies", "SystemCallArchitectures", "MemoryDenyWriteExecute"),
        *("LockPersonality", "RestrictRealtime", "RestrictSUIDSGID", "ProtectKernelModules"),
    ],
)
def test_what_would_break_sandboxes_is_off_and_explained(name: str) -> None:
    assert name not in SERVICE
    comments = [
        line
        for line in (DEPLOY / "agentd.service").read_text().splitlines()
        if line.startswith("#")
    ]
    assert any(name in line for line in comments)


def test_no_capability_is_taken_that_a_wall_is_built_with() -> None:
    needed = {
        *("SYS_ADMIN", "SETUID", "SETGID", "SETPCAP", "SETFCAP", "CHOWN", "DAC_OVERRIDE"),
        *("DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "NET_ADMIN", "NET_BIND_SERVICE"),
        *("NET_RAW", "SYS_CHROOT", "SYS_PTRACE", "SYS_RESOURCE", "SYS_NICE", "MKNOD", "IPC_LOCK"),
    }
    taken: set[str] = set()
    for line in SERVICE["CapabilityBoundingSet"]:
        assert line.startswith("~"), "a list of what stays would forget what a kernel adds"
        taken |= {word.removeprefix("CAP_") for word in line[1:].split()}
    assert not taken & needed
    assert {"SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "SYS_TIME"} <= taken


def test_no_device_is_closed_that_something_is_made_with() -> None:
    """Volumes with a size are file systems in files, which loop devices have: with the module's
    driver known, as a name of DeviceAllow= must be when the unit starts (systemd.resource-control
    (5))."""
    assert SERVICE["DevicePolicy"] == ["closed"]
    allowed = dict(line.rsplit(" ", 1) for line in SERVICE["DeviceAllow"])
    assert set(allowed.values()) == {"rw"}
    assert {kvm.DEVICE, disk.CONTROL, "block-loop"} <= set(allowed)
    for key in ("Wants", "After"):
        assert any("modprobe@loop.service" in line for line in unit("agentd.service")["Unit"][key])


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
def test_systemd_has_no_complaints(tmp_path: Path) -> None:
    program = tmp_path / "agentd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in ("agentd.service", "agentd.socket"):
        text = (DEPLOY / name).read_text().replace("/opt/agentd/bin/agentd", str(program))
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            str(tmp_path / "agentd.service"),
            str(tmp_path / "agentd.socket"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    ours = [line for line in done.stderr.splitlines() if "agentd" in line]
    assert (done.returncode, ours) == (0, [])
