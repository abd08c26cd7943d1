"""Threat: device nodes, which reach hardware and kernel memory past every path rule.

Controls: seccomp refuses to make them; Landlock has no rule that allows it; without capabilities
nobody may. Those the host has are not in the linux wall's /dev, and Landlock closes them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Pairs (major, minor): null, mem, kmsg, loop0 and vda; the whiteout 0:0, which is no device and
# which the kernel lets anyone make, is what an overlay's owner forges deletions with.
MAKE = """
for name, kind, major, minor in (
    ("null", 0o20000, 1, 3), ("mem", 0o20000, 1, 1), ("kmsg", 0o20000, 1, 11),
    ("loop", 0o60000, 7, 0), ("whiteout", 0o20000, 0, 0)):
    device = os.makedev(major, minor)
    said(name, tried(os.mknod, name, kind | 0o666, device))
    said(f"{name} raw", call("mknod", f"{name}.raw".encode(), kind | 0o666, device)
         if "mknod" in NR else "EPERM")
    # The kernel cuts the mode to 16 bits; so must the filter.
    said(f"{name} high", call("mknodat", -100, f"{name}.high".encode(), 1 << 32 | kind, device))
"""
PLAIN = """
said("fifo", tried(os.mkfifo, "fifo"))
said("file", tried(os.mknod, "file", 0o100644))
"""
OPEN = """
import stat
for name in ("null", "mem"):
    got = tried(os.mknod, name, 0o20666, os.makedev(1, {"null": 3, "mem": 1}[name]))
said("null", opens("null", os.O_RDWR))
"""
LIST = """
for name in sorted(os.listdir("/dev")):
    mode = os.lstat(f"/dev/{name}").st_mode
    said(name, "block" if stat.S_ISBLK(mode) else "char" if stat.S_ISCHR(mode) else "other")
"""
PATHS = ("/dev/kmsg", "/dev/mem", "/dev/kvm", "/dev/fuse", "/dev/loop-control", "/dev/net/tun")
REACH = f"""
for path in {PATHS!r}:
    said(path, opens(path))
    said(path + " write", opens(path, os.O_WRONLY))
"""
HARMLESS = {"null", "zero", "full", "random", "urandom", "tty"}


def test_no_device_is_made(sandbox: Callable[..., Any], enclosed: str) -> None:
    answers = sandbox(enclosed).attack(MAKE)
    assert answers == dict.fromkeys(answers, "EPERM")


def test_seccomp_alone_stops_root(sandbox: Callable[..., Any]) -> None:
    off = {"capabilities", "landlock"}
    answers = sandbox("linux", without=off, user="root").attack(MAKE)
    assert answers == dict.fromkeys(answers, "EPERM")


def test_landlock_alone_stops_what_needs_no_capability(sandbox: Callable[..., Any]) -> None:
    """A whiteout: the filter's EPERM becomes Landlock's EACCES, and without both it is made."""
    box = sandbox("linux", without={"seccomp"})
    assert box.attack(MAKE)["whiteout"] == "EACCES"
    assert sandbox("linux", without={"seccomp", "landlock"}).attack(MAKE)["whiteout"] == "None"


def test_a_user_namespace_makes_no_device(sandbox: Callable[..., Any]) -> None:
    """With every control gone root inside has no CAP_MKNOD that counts."""
    off = {"seccomp", "landlock", "capabilities"}
    answers = sandbox("linux", without=off, user="root").attack(MAKE)
    assert {answers[name] for name in ("null", "mem", "kmsg", "loop")} == {"EPERM"}


@pytest.mark.root
@pytest.mark.parametrize("control", ["seccomp", "landlock", "capabilities"])
def test_each_control_alone_stops_the_machines_root(
    sandbox: Callable[..., Any], control: str
) -> None:
    off = {"identity", "seccomp", "landlock", "capabilities"} - {control}
    script = 'said("null", tried(os.mknod, sys.argv[1], 0o20666, os.makedev(1, 3)))'
    box = sandbox("landlock", without=off)
    answers = box.attack(script, f"{box.workspace}/null", cwd="/")
    assert answers["null"] in {"EPERM", "EACCES"}


@pytest.mark.root
def test_off_a_device_is_made_and_opened(sandbox: Callable[..., Any]) -> None:
    """A second /dev/null, by the machine's root."""
    off = {"identity", "seccomp", "landlock", "capabilities"}
    assert sandbox("landlock", without=off).attack(OPEN)["null"] == "opened"


def test_fifos_and_files_are_made(sandbox: Callable[..., Any], enclosed: str) -> None:
    assert sandbox(enclosed).attack(PLAIN) == {"fifo": "None", "file": "None"}


def test_dev_holds_nothing_else(sandbox: Callable[..., Any]) -> None:
    script = "import stat\n" + LIST
    answers = sandbox("linux").attack(script)
    assert {name for name, kind in answers.items() if kind != "other"} == HARMLESS
    host = sandbox("host").attack(script)
    assert {name for name, kind in host.items() if kind != "other"} > HARMLESS


def test_no_device_of_the_host_is_opened(sandbox: Callable[..., Any], walled: str) -> None:
    answers = sandbox(walled).attack(REACH)
    assert set(answers.values()) <= {"ENOENT", "EACCES"}


@pytest.mark.root
def test_off_the_hosts_devices_are_opened(sandbox: Callable[..., Any]) -> None:
    """Opened and closed again, nothing more. Landlock alone keeps the machine's root out."""
    off = {"identity", "capabilities"}
    kept = sandbox("landlock", without=off).attack(REACH)
    assert set(kept.values()) <= {"ENOENT", "EACCES"}
    answers = sandbox("landlock", without=off | {"landlock"}).attack(REACH)
    if answers["/dev/kmsg"] == "ENOENT":
        pytest.skip("this machine has no /dev/kmsg")
    assert answers["/dev/kmsg"] == "opened"


MOUNTS = ["cat", "/proc/self/mountinfo"]


@pytest.mark.parametrize("wall", ["linux", "oci"])
def test_no_place_has_devices(sandbox: Callable[..., Any], wall: str, tmp_path: Path) -> None:
    """Every one that can be written is mounted nodev, nosuid: a node from elsewhere is dead."""
    script = """
for line in open("/proc/self/mountinfo"):
    fields = line.split()
    said(fields[4], fields[5])
"""
    answers = sandbox(wall, mounts=[f"{tmp_path}:/data:rw"]).attack(script)
    writable = {place: how for place, how in answers.items() if "rw" in how.split(",")}
    places = {"/workspace", "/tmp", "/dev/shm", "/home/sandbox", "/data"}
    assert places <= set(writable)
    # Runtimes mount single devices, and one over what is masked in /proc.
    for place in writable if wall == "linux" else places:
        if place == "/dev/shm" or place.split("/")[1] != "dev":
            assert {"nosuid", "nodev"} <= set(writable[place].split(",")), place


@pytest.mark.parametrize(
    "way",
    [{}, {"user": "root"}, {"user": "root", "writable": True}, {"workspace": "{}:cow"}],
    ids=["usual", "root", "a root that can be written", "copy on write"],
)
def test_no_mount_has_set_id_programs_and_none_that_is_written_devices(
    sandbox: Callable[..., Any], way: dict[str, Any], tmp_path: Path
) -> None:
    """Whatever the wall is made of: overlays, copies of the root, mounts of the host's."""
    (folder := tmp_path / "folder").mkdir()
    given = {k: v.format(folder) if isinstance(v, str) else v for k, v in way.items()}
    box = sandbox("linux", mounts=[f"{tmp_path}:/data:rw", f"{tmp_path}:/other"], **given)
    found = box.run(MOUNTS).stdout.splitlines()
    assert any(line.split()[4] == "/other" for line in found)
    for line in found:
        place, how = line.split()[4], set(line.split()[5].split(","))
        assert "nosuid" in how, line
        is_device = place.startswith("/dev/") and place != "/dev/shm"
        assert "ro" in how or "nodev" in how or is_device, line


def test_of_a_runtimes_mounts_only_its_own_have_either(
    sandbox: Callable[..., Any], tmp_path: Path
) -> None:
    """The root that a runtime makes is read-only; the devices, and what is over /proc, are its."""
    box = sandbox("oci", mounts=[f"{tmp_path}:/data:rw", f"{tmp_path}:/other"])
    found = {line.split()[4]: line.split()[5] for line in box.run(MOUNTS).stdout.splitlines()}
    assert {"/data", "/other", "/workspace", "/usr"} <= set(found)
    for place, how in found.items():
        if place != "/" and place.split("/")[1] not in ("dev", "proc"):
            assert {"nosuid", "nodev"} <= set(how.split(",")), place
    assert {"nosuid", "nodev", "noexec"} <= set(found["/proc"].split(","))
    assert "ro" in found["/"].split(",")
