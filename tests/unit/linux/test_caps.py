import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.recording import RecordingKernel

from agentd.linux import abi, caps

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="has no capability to drop unless uid 0")


def in_child(code: str) -> str:
    """What ``code`` prints in a fresh interpreter."""
    head = (
        "import os, subprocess\nfrom agentd.linux import caps\nfrom agentd.linux.kernel import *\n"
        "def mask(field):\n"
        "    text = open('/proc/thread-self/status').read()\n"
        "    return int(text.partition(field + ':')[2].split()[0], 16)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PYTHONPATH": str(Path(caps.__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


CHOWN = """
import tempfile
with tempfile.NamedTemporaryFile() as file:
    %s
    try:
        os.chown(file.name, 65534, 65534)
        print("done")
    except PermissionError:
        print("denied")
"""


@as_root
@pytest.mark.parametrize(("control", "outcome"), [("caps.drop_all()", "denied"), ("", "done")])
def test_a_privileged_act_is_denied_after_drop_all(control: str, outcome: str) -> None:
    assert in_child(CHOWN % (control or "pass")) == outcome


EXEC = 'print(subprocess.check_output(["grep", "CapEff", "/proc/self/status"], text=True))'


@as_root
def test_exec_as_uid_0_gives_no_capability_back() -> None:
    assert int(in_child("caps.drop_all()\n" + EXEC).split()[1], 16) == 0


@as_root
def test_without_locked_securebits_exec_as_uid_0_gives_them_back() -> None:
    assert int(in_child("KERNEL.capset(0)\n" + EXEC).split()[1], 16) != 0


@as_root
def test_the_securebits_cannot_be_cleared_again() -> None:
    code = """
print(caps.lock_securebits(), KERNEL.prctl(27) == caps.SECUREBITS_LOCKED)
try:
    KERNEL.prctl(28, 0)
except PermissionError:
    print("locked")
"""
    assert in_child(code).split() == ["True", "True", "locked"]


@as_root
def test_no_capability_can_be_made_ambient_or_kept_over_a_change_of_uid() -> None:
    code = """
caps.lock_securebits()
for act in (lambda: KERNEL.prctl(8, 1), lambda: KERNEL.prctl(47, 2, 0)):
    try:
        act()
        print("done")
    except PermissionError:
        print("denied")
"""
    assert in_child(code).split() == ["denied", "denied"]


@as_root
def test_drop_bounding_empties_the_set() -> None:
    assert in_child("caps.drop_bounding(); print(mask('CapBnd'))") == "0"
    assert in_child("print(mask('CapBnd'))") != "0"


def test_effective_is_0_after_drop_all_also_without_privilege() -> None:
    code = "KERNEL.capset(0); caps.drop_all(); print(mask('CapEff'))"
    assert in_child(code) == "0"


@as_root
def test_effective_tells_what_is_held() -> None:
    assert in_child("print(mask('CapEff') >> 0 & 1)") == "1"


def test_securebits_are_locked_before_the_capabilities_go() -> None:
    kernel = RecordingKernel()
    caps.drop_all(kernel)
    assert kernel.names() == ["prctl", "prctl", "capset"]
    assert kernel.calls[0][1][:2] == (abi.PR_SET_SECUREBITS, 0xEF)
    assert kernel.calls[1][1][:2] == (abi.PR_CAP_AMBIENT, abi.PR_CAP_AMBIENT_CLEAR_ALL)


def test_lock_securebits_says_that_the_caller_may_not() -> None:
    assert not caps.lock_securebits(RecordingKernel({"prctl": [OSError(errno.EPERM, "no")]}))
    with pytest.raises(OSError, match="bad"):
        caps.lock_securebits(RecordingKernel({"prctl": [OSError(errno.EINVAL, "bad")]}))


def test_drop_bounding_ends_where_the_kernels_capabilities_end() -> None:
    kernel = RecordingKernel()
    caps.drop_bounding(kernel)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    wanted = [("prctl", (abi.PR_CAPBSET_DROP, number, 0, 0, 0)) for number in range(last + 1)]
    assert kernel.calls == wanted


def test_drop_bounding_does_not_hide_a_refusal() -> None:
    kernel = RecordingKernel({"prctl": [0, OSError(errno.EPERM, "no")]})
    with pytest.raises(PermissionError):
        caps.drop_bounding(kernel)
    kernel = RecordingKernel({"prctl": [OSError(errno.EPERM, "no")]})
    assert not caps.drop_bounding_if_allowed(kernel)
    with pytest.raises(OSError, match="bad"):
        caps.drop_bounding_if_allowed(RecordingKernel({"prctl": [OSError(errno.EINVAL, "bad")]}))


def test_without_privilege_the_bounding_set_stays_and_is_told_of() -> None:
    code = "KERNEL.capset(0); print(caps.drop_bounding_if_allowed(), mask('CapBnd') != 0)"
    bounded = "print(mask('CapBnd') != 0)"
    assert in_child(code) == f"False {in_child(bounded)}"
