"""What a process that serves a guest may still do once it is shut in: tried by one that is."""

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.linux import landlock, privileges

UID = 2_147_000_777  # nobody's
OTHERS = 64_990  # a group that it is in before
ATTACK = """
import ctypes, errno, json, os, socket, sys
from agentd.linux import abi, seccomp
from agentd.linux.kernel import KERNEL
from agentd.sandbox.backends.vm.confine import Cell, confine
top, uid, port, programs = sys.argv[1], int(sys.argv[2]) or None, int(sys.argv[3]), sys.argv[4]
flags = os.O_PATH | os.O_DIRECTORY
stream = socket.socket()  # nothing is imported once it is shut in: it may not see its own Python
read, write, other = (os.open(f"{top}/{name}", flags) for name in ("read", "write", "other"))

def tried(action, *args, **options):
    try:
        action(*args, **options)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def opened(folder, how):
    return tried(os.open, "file", how, dir_fd=folder)

held = confine(Cell(uid=uid, readable=(read,), writable=(write,), programs=programs == "True",
                    filter_=seccomp.build("monitor")))
print(json.dumps({
    "held": held,
    "read": opened(read, os.O_RDONLY),
    "write what is read": opened(read, os.O_WRONLY),
    "write": opened(write, os.O_RDWR),
    "other": opened(other, os.O_RDONLY),
    "passwd": tried(os.open, "/etc/passwd", os.O_RDONLY),
    "program": tried(os.open, "/usr/bin/env", os.O_RDONLY),
    "connect": tried(stream.connect, ("127.0.0.1", port)),
    "namespace": tried(KERNEL.unshare, abi.CLONE_NEWUSER),
}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def top() -> Iterator[Path]:
    """Three folders with a file each that anybody may read and write, but for what shuts one in."""
    with tempfile.TemporaryDirectory(prefix="agentd-confine-") as name:
        for folder in ("read", "write", "other"):
            place = Path(name, folder)
            place.mkdir()
            place.chmod(0o755)
            (place / "file").touch()
            (place / "file").chmod(0o666)
        yield Path(name)


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: " ".join(value.split()) for name, _, value in (x.partition(":") for x in lines)}


def _limits(pid: int) -> dict[str, list[str]]:
    """Soft and hard, by name."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return {line[:26].strip(): line[26:].split()[:2] for line in lines[1:]}


@pytest.mark.parametrize(
    ("programs", "becomes"), [(False, UID), (True, UID), (False, 0)], ids=["", "programs", "itself"]
)
def test_it_has_what_it_was_given_and_nothing_else(top: Path, programs: bool, becomes: int) -> None:
    """``becomes`` 0: it stays who it is, as root does that may become nobody else."""
    is_root = not privileges.no_users(UID, UID + 1)
    uid = becomes if is_root else 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = [str(top), str(uid), str(server.getsockname()[1]), str(programs)]
        child = subprocess.Popen(
            [sys.executable, "-c", ATTACK, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            extra_groups=[OTHERS] if is_root else None,
        )
        with child:
            assert child.stdin is not None and child.stdout is not None
            line = child.stdout.readline()
            assert line, child.wait(60)
            found: dict[str, Any] = json.loads(line)
            status, limits = _status(child.pid), _limits(child.pid)
            child.stdin.close()
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", *(["CapBnd"] if is_root else [])):
        assert int(status[name], 16) == 0, name
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max msgqueue size"] == ["0", "0"]
    assert max(int(most) for most in limits["Max open files"]) <= 65536
    if uid:
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(uid)}
        assert status["Groups"] == ""
    assert found["namespace"] == "EPERM"
    assert {"no_new_privs", "capabilities", "seccomp", "rlimits"} <= set(found["held"])
    if not landlock.abi_version():
        pytest.skip("this kernel has no Landlock: what files it has is not judged")
    assert "landlock" in found["held"]
    assert (found["read"], found["write"]) == ("done", "done")
    assert found["program"] == ("done" if programs else "EACCES")
    for what in ("write what is read", "other", "passwd"):
        assert found[what] == "EACCES", what
    if landlock.abi_version() >= 4:
        assert found["connect"] == "EACCES"
