"""Threat: leaving the root by mounts, pivot_root, chroot, or file handles.

Controls, each of which stands alone: seccomp refuses the calls; Landlock refuses to change the
mount table; a process without capabilities may do neither. What even root inside cannot undo: the
mounts that came from outside are locked by the user namespace (mount_namespaces(7)).
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.rootfs import IMAGE

from agentd.linux import abi
from agentd.linux.seccomp.tables import numbers

CONTROLS = frozenset({"seccomp", "landlock", "capabilities"})
# All within the sandbox's own mount namespace; run on the host's only where seccomp refuses.
MOUNTS = r"""
said("mount", call("mount", b"none\0", b"/dev/shm\0", b"tmpfs\0", 0, 0))
said("bind", call("mount", b"/usr\0", b"/dev/shm\0", b"none\0", 4096, 0))
tree = call("open_tree", -100, b"/dev/shm\0", 1 | 0x80000)
said("open_tree", tree)
context = call("fsopen", b"tmpfs\0", 0)
said("fsopen", context)
said("fspick", call("fspick", -100, b"/dev/shm\0", 0))
if isinstance(context, int):
    call("fsconfig", context, 6, 0, 0, 0)
made = call("fsmount", context if isinstance(context, int) else -1, 0, 0)
said("fsmount", made)
said("move_mount", call("move_mount", made if isinstance(made, int) else -1, b"\0", -100,
                        b"/dev/shm\0", 4))
said("umount", call("umount2", b"/dev/shm\0", 2))
"""
CHROOT = r"""
os.mkdir("/tmp/jail")
here = os.open(".", os.O_RDONLY)
said("chroot", call("chroot", b"/tmp/jail\0"))
os.fchdir(here)
for _ in range(64):
    os.chdir("..")
said("again", call("chroot", b".\0"))
said("root", sorted(set(os.listdir("/")) & {"usr", "workspace"}))
said("host", os.path.exists(sys.argv[1]))
"""
PIVOT = r'said("pivot", call("pivot_root", b"/tmp\0", b"/tmp\0"))'
UNLOCK = r"""
writable = struct.pack("=4Q", 0, 1, 0, 0)  # clears MOUNT_ATTR_RDONLY
for place in (b"/usr\0", b"/\0", b"/etc/ssl/certs\0"):
    said(place[:-1].decode(), call("mount_setattr", -100, place, 0, writable, 32))
said("remount", call("mount", b"none\0", b"/usr\0", b"none\0", 32 | 4096, 0))
said("uncover", call("umount2", b"/usr\0", 2))
"""
# Of the file system itself, then what that would allow: MS_REMOUNT; FSCONFIG_CMD_RECONFIGURE.
REOPEN = r"""
said("file system", call("mount", b"none\0", b"/\0", b"none\0", 32, 0))
picked = call("fspick", -100, b"/\0", 0)
call("fsconfig", picked, 0, b"rw\0", 0, 0)
said("reconfigure", call("fsconfig", picked, 7, 0, 0, 0))
said("write over", opens("/usr/bin/env", os.O_WRONLY))
said("write new", tried(os.mkdir, "/made"))
said("write name", tried(os.rename, "/usr/bin/env", "/usr/bin/moved"))
said("write mode", tried(os.chmod, "/usr/bin/env", 0o777))
"""
HANDLE = r"""
handle = bytes.fromhex(sys.argv[1])
where = os.open("/usr", os.O_RDONLY)
said("open", opened if isinstance(opened := call("open_by_handle_at", where, handle, 0), str)
     else "opened")
own = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
said("name", call("name_to_handle_at", -100, b"/usr/bin/env\0", own, ctypes.create_string_buffer(8),
                  0))
for name in ("statmount", "listmount"):
    said(name, call(name, 0, 0, 0, 0))
"""


def _alone(control: str) -> frozenset[str]:
    return CONTROLS - {control}


def test_no_mount_is_made(sandbox: Callable[..., Any], enclosed: str) -> None:
    answers = sandbox(enclosed).attack(MOUNTS + PIVOT)
    unknown = {"ENOSYS"} if enclosed == "gvisor" else set()
    assert set(answers.values()) <= {"EPERM", *unknown}, answers


@pytest.mark.parametrize("control", ["seccomp", "capabilities"])
def test_each_control_alone_stops_root(sandbox: Callable[..., Any], control: str) -> None:
    answers = sandbox("linux", without=_alone(control), user="root").attack(MOUNTS + PIVOT)
    assert answers == dict.fromkeys(answers, "EPERM")


def test_landlock_alone_keeps_the_mount_table(sandbox: Callable[..., Any]) -> None:
    """A detached mount can be made under Landlock, but is attached nowhere."""
    answers = sandbox("linux", without=_alone("landlock"), user="root").attack(MOUNTS + PIVOT)
    changes = ("mount", "bind", "move_mount", "umount", "pivot")
    assert {name: answers[name] for name in changes} == dict.fromkeys(changes, "EPERM")


def test_off_root_inside_mounts(sandbox: Callable[..., Any]) -> None:
    answers = sandbox("linux", without=CONTROLS, user="root").attack(MOUNTS + PIVOT)
    assert {name: got for name, got in answers.items() if not got.isdigit()} == {}


@pytest.mark.parametrize("control", ["seccomp", "capabilities"])
def test_chroot_is_refused(sandbox: Callable[..., Any], control: str, tmp_path: Path) -> None:
    box = sandbox("linux", without=_alone(control), user="sandbox")
    assert box.attack(CHROOT, str(tmp_path))["chroot"] == "EPERM"


@pytest.mark.parametrize("without", [frozenset(), CONTROLS], ids=["whole", "off"])
def test_roots_chroot_escapes_to_the_sandboxs_root_only(
    sandbox: Callable[..., Any], tmp_path: Path, without: frozenset[str]
) -> None:
    """pivot_root left nothing of the host above the sandbox's own root."""
    answers = sandbox("linux", without=without, user="root").attack(CHROOT, str(tmp_path))
    assert answers == {
        "chroot": "0",
        "again": "0",
        "root": "['usr', 'workspace']",
        "host": "False",
    }


@pytest.mark.skipif(bool(IMAGE), reason="an image's is mounted by the sandbox: see the next test")
def test_locked_mounts_stay(sandbox: Callable[..., Any]) -> None:
    """The host's directories stay read-only and in place, all three controls gone."""
    answers = sandbox("linux", without=CONTROLS, user="root").attack(UNLOCK)
    assert set(answers.values()) <= {"EPERM", "EINVAL"}  # EINVAL: locked, or not unmountable


@pytest.mark.skipif(not IMAGE, reason="make test-images: it takes an image with Python")
def test_an_images_root_is_written_to_by_nobody(sandbox: Callable[..., Any]) -> None:
    """All three controls gone, root inside makes its mount writable, but not what is mounted: that
    is an overlay of layers that nobody writes to, and takes no other while it is there."""
    box = sandbox("linux", without=CONTROLS, user="root")
    answers = box.attack(UNLOCK + REOPEN)
    assert answers["/"] == "0"
    assert {answers[name] for name in ("file system", "reconfigure")} <= {"EROFS", "EINVAL"}
    written = {name: got for name, got in answers.items() if name.startswith("write ")}
    assert written == dict.fromkeys(written, "EROFS")
    assert len(written) == 4


def _handle_of(path: str) -> str:
    """What name_to_handle_at says of ``path``, as struct file_handle in hex."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer((128).to_bytes(4, "little") + bytes(132))
    mount = ctypes.create_string_buffer(8)
    number = numbers(abi.MACHINE)["name_to_handle_at"]
    if libc.syscall(number, -100, path.encode(), buffer, mount, 0):
        pytest.skip(f"{path}: its file system has no handles")
    return buffer.raw.hex()


def test_no_file_handle_is_opened(sandbox: Callable[..., Any], walled: str) -> None:
    answers = sandbox(walled).attack(HANDLE, _handle_of("/"))
    assert answers == dict.fromkeys(answers, "EPERM")


@pytest.mark.root
@pytest.mark.skipif(
    os.stat("/").st_dev != os.stat("/usr").st_dev, reason="/usr is a file system of its own"
)
def test_off_a_handle_opens_the_hosts_root(sandbox: Callable[..., Any]) -> None:
    """For a process with CAP_DAC_READ_SEARCH; then for root in a user namespace: not even then."""
    host = {"identity", "capabilities", "landlock"}
    handle = _handle_of("/")
    off = sandbox("landlock", without=host | {"seccomp"}).attack(HANDLE, handle)
    assert off["open"] == "opened"
    assert off["name"] == "0"
    assert sandbox("landlock", without=host).attack(HANDLE, handle)["open"] == "EPERM"
    inside = sandbox("linux", without=CONTROLS, user="root").attack(HANDLE, handle)
    assert inside["open"] in {"EPERM", "ESTALE"}
    assert inside["name"] == "0"
