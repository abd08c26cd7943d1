"""A container whose filter has a listener of its own: a process can have one alone."""

import os
import shutil
import subprocess
import sys

import pytest

from agentd.linux import abi

# Allows everything, and asks nobody.
LAUNCHER = f"""
import ctypes, os, struct, sys
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
program = Program(1, struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))
fd = libc.syscall({abi.SYS.seccomp}, 1, 8, ctypes.byref(program))
assert fd >= 0, os.strerror(ctypes.get_errno())
os.set_inheritable(fd, True)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    argv = ["-m", "agentd", "run", "--embedded", "--backend", "linux", "--", *words]
    return subprocess.run(
        [sys.executable, "-c", LAUNCHER, *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")},
        timeout=100,
        check=False,
    )


def test_sandboxes_work_behind_it() -> None:
    done = run("sh", "-c", "grep Seccomp_filters /proc/self/status")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) == 2


def test_what_would_be_asked_is_refused() -> None:
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    done = run("strace", "-f", "true")
    assert done.returncode != 0
    assert "Function not implemented" in done.stderr, done.stderr
