"""Threat: gaining privileges: capabilities, set-uid programs, another uid.

Controls: all capabilities dropped and the securebits locked, or for root all but those over what is
the sandbox's; no_new_privs, under which no exec gains anything; nosuid on every mount of the linux
wall, whose user namespace has one uid at all, or root's own.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

NONE = "0" * 16
# capabilities(7): CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
# NET_BIND_SERVICE, SYS_CHROOT, SETFCAP
ROOTS = f"{sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31)):016x}"
STATUS = """
for line in open("/proc/self/status"):
    if line.startswith(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")):
        name, value = line.split()
        said(name[:-1], value)
"""
# Landlock leaves /proc/self closed; the calls say as much.
ASK = """
header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
data = ctypes.create_string_buffer(24)
call("capget", header, data)
said("caps", "".join(f"{word:08x}" for word in struct.unpack("=6I", data.raw[:24])))
said("no_new_privs", call("prctl", 39, 0, 0, 0, 0))
said("ambient", sum(call("prctl", 47, 1, n, 0, 0) for n in range(38)))
said("bounding", sum(call("prctl", 23, n, 0, 0, 0) for n in range(38)))
"""
# None of these does anything to anyone but the caller.
GAIN = """
PR_SET_KEEPCAPS, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 8, 28, 38, 47
header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
full = struct.pack("=6I", *[0xFFFFFFFF] * 6)
said("capset", call("capset", header, full))
said("ambient", call("prctl", PR_CAP_AMBIENT, 2, 21, 0, 0))
said("securebits", call("prctl", PR_SET_SECUREBITS, 0, 0, 0, 0))
said("no_new_privs", call("prctl", PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0))
other = 0 if os.getuid() else 1
said("setuid", call("setuid", other))
said("setresuid", call("setresuid", other, other, other))
said("setgid", call("setgid", other))
said("setgroups", call("setgroups", 0, 0))
"""
ROOT_EXEC = """
import subprocess
code = "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('CapEff')][0])"
said("after exec", subprocess.run([sys.executable, "-I", "-c", code], capture_output=True,
                                  text=True).stdout.strip())
"""
RUN = """
import subprocess
said("euid", subprocess.run([sys.argv[1], "-u"], capture_output=True, text=True).stdout.strip())
"""


@pytest.fixture
def setuid_id() -> Iterator[Path]:
    """``id`` as a set-uid program of root's, in a directory that all may read."""
    with TemporaryDirectory(prefix="setuid-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103 the program must be reached
        program = Path(folder, "id")
        shutil.copy("/usr/bin/id", program)
        program.chmod(0o4755)
        yield program


def test_nothing_is_held(sandbox: Callable[..., Any], walled: str) -> None:
    """An ordinary user may not give up the bounding set of the process level: it is told."""
    box = sandbox(walled)
    answers = box.attack(ASK)
    bounding = answers.pop("bounding")
    assert answers == {"caps": "0" * 48, "no_new_privs": "1", "ambient": "0"}
    said = box.wall.enforcement["capabilities"].detail
    assert (bounding == "0") is said.startswith("none in any set")
    assert bounding == "0" or (walled == "landlock" and os.getuid() != 0)


def test_nothing_is_held_says_the_kernel(sandbox: Callable[..., Any]) -> None:
    held = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), NONE)
    assert sandbox("linux").attack(STATUS) == held | {"NoNewPrivs": "1"}


def test_root_holds_what_is_over_the_sandboxs_own_and_no_more(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux", user="root")
    held = dict.fromkeys(("CapPrm", "CapEff", "CapBnd"), ROOTS)
    held |= dict.fromkeys(("CapInh", "CapAmb"), NONE)
    assert box.attack(STATUS) == held | {"NoNewPrivs": "1"}
    said = box.wall.enforcement["capabilities"].detail
    assert "CAP_SETUID" in said
    assert "CAP_NET_ADMIN" not in said


def test_root_gains_none_beside_and_another_user_none_at_all(sandbox: Callable[..., Any]) -> None:
    answers = sandbox("linux", user="root").attack(GAIN + STATUS)
    assert answers["capset"] == answers["ambient"] == "EPERM"
    assert answers["CapEff"] in (ROOTS, NONE)  # GAIN became another user, where there is one
    box = sandbox("linux", user="root")
    if "and no other" in box.wall.enforcement["user_namespace"].detail:
        return
    code = "os.setresgid(7, 7, 7); os.setresuid(7, 7, 7)\n" + ROOT_EXEC
    assert box.attack(code) == {"after exec": NONE}
    back = "os.setresuid(7, 7, 7); said('back', call('setresuid', 0, 0, 0))"
    assert box.attack(back) == {"back": "EPERM"}


def test_off_root_inside_holds_all(sandbox: Callable[..., Any]) -> None:
    answers = sandbox("linux", without={"capabilities"}, user="root").attack(STATUS + ROOT_EXEC)
    assert int(answers["CapEff"], 16) & (1 << 21)  # CAP_SYS_ADMIN
    assert answers["CapBnd"] == answers["CapEff"]
    assert answers["after exec"] == answers["CapEff"]


def test_nothing_comes_back(sandbox: Callable[..., Any], enclosed: str) -> None:
    answers = sandbox(enclosed).attack(GAIN)
    assert answers.pop("no_new_privs") == "EINVAL"  # it cannot be unset
    assert set(answers.values()) <= {"EPERM", "EINVAL"}  # EINVAL: a uid without a mapping


def test_an_exec_of_root_brings_nothing_back(sandbox: Callable[..., Any]) -> None:
    """The bounding set and no_new_privs each see to that."""
    assert sandbox("linux", user="root").attack(ROOT_EXEC) == {"after exec": ROOTS}
    off = {"no_new_privs", "landlock", "seccomp"}  # which cannot be without it
    assert sandbox("linux", without=off, user="root").attack(ROOT_EXEC) == {"after exec": ROOTS}


def test_off_capabilities_come_back(sandbox: Callable[..., Any]) -> None:
    """What the process still has it can use to change who it is."""
    box = sandbox("linux", without={"capabilities", "seccomp"}, user="root")
    answers = box.attack(GAIN)
    assert answers["ambient"] != "EINVAL"
    assert answers["securebits"] == "0"


@pytest.mark.root
def test_a_setuid_program_gains_nothing(sandbox: Callable[..., Any], setuid_id: Path) -> None:
    own = sandbox("landlock", mounts=[f"{setuid_id.parent}:{setuid_id.parent}"])
    mine = own.attack("said('euid', os.getuid())")
    assert mine["euid"] != "0"
    assert own.attack(RUN, str(setuid_id)) == mine
    inside = sandbox("linux", mounts=[f"{setuid_id.parent}:/programs"])
    assert inside.attack(RUN, "/programs/id") == {"euid": "1000"}


@pytest.mark.root
def test_off_a_setuid_program_makes_root(sandbox: Callable[..., Any], setuid_id: Path) -> None:
    box = sandbox("landlock", without={"no_new_privs", "landlock", "seccomp"})
    assert box.attack(RUN, str(setuid_id)) == {"euid": "0"}


@pytest.mark.root
def test_the_mounts_are_nosuid_too(sandbox: Callable[..., Any], setuid_id: Path) -> None:
    """Without no_new_privs the linux wall still has nosuid, and no uid 0 to become."""
    off = {"no_new_privs", "landlock", "seccomp"}
    box = sandbox("linux", without=off, mounts=[f"{setuid_id.parent}:/programs"])
    assert box.attack(RUN, "/programs/id") == {"euid": "1000"}


def test_a_program_of_ones_own_gains_nothing(sandbox: Callable[..., Any]) -> None:
    """As one uid, then as another of the same sandbox: set-uid bits lead nowhere."""
    script = """
import shutil, subprocess
shutil.copy("/usr/bin/id", "id")
said("chmod", tried(os.chmod, "id", 0o6755))
said("euid", subprocess.run(["./id", "-u"], capture_output=True, text=True).stdout.strip())
said("xattr", tried(os.setxattr, "id", "security.capability",
                    struct.pack("=IIIII", 0x02000001, 1 << 21, 0, 0, 0)))
"""
    answers = sandbox("linux").attack(script)
    assert answers["euid"] == "1000"
    assert answers["xattr"] in {"EPERM", "ENOTSUP", "EOPNOTSUPP"}
