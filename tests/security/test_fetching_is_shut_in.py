"""Threat: a registry, or an image, has the program that reads it run code.

Control: skopeo and umoci run in a cell: a user and a root of their own, no capability, a filter.
"""

import json
import os
import resource
import select
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.oci import Images

from agentd.image.oci import tools
from agentd.linux import landlock

# Of a process that waits for a registry's answer, this is to be true whatever it would do.
_STATUS = {"Seccomp": "2", "NoNewPrivs": "1", **dict.fromkeys(("CapEff", "CapPrm", "CapBnd"), "0")}


@pytest.fixture
def registry() -> Iterator[socket.socket]:
    """One that takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in map(int, found) for each in (child, *children(child))]


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: " ".join(value.split()) for name, _, value in (x.partition(":") for x in lines)}


@pytest.mark.needs("skopeo", "umoci")
@pytest.mark.root
def test_what_fetches_has_nothing_of_the_host(tmp_path: Path, registry: socket.socket) -> None:
    images = Images(tmp_path)
    place = f"127.0.0.1:{registry.getsockname()[1]}"
    pull = images.start("pull", f"docker://{place}/x:1", "--insecure")
    try:
        ready, _, _ = select.select([registry, pull.stdout], [], [], 120)
        assert registry in ready, pull.communicate()  # it fetches, and waits
        connection, _ = registry.accept()
        with connection:
            (skopeo,) = [
                pid
                for pid in children(pull.pid)
                if Path(f"/proc/{pid}/comm").read_text() == "skopeo\n"
            ]
            told = status(skopeo)
            for name, wanted in _STATUS.items():
                assert told[name].lstrip("0") == wanted.lstrip("0"), (name, told[name])
            assert len(set(told["Uid"].split())) == 1 and int(told["Uid"].split()[0]) > 1 << 30
            assert told["NSpid"].split()[-1] == "1"
            for path in ("/root", "/boot", str(tmp_path), __file__):
                assert not os.path.exists(f"/proc/{skopeo}/root{path}"), path
            for kind in ("user", "mnt", "pid", "ipc", "uts"):
                assert os.readlink(f"/proc/{skopeo}/ns/{kind}") != os.readlink(
                    f"/proc/self/ns/{kind}"
                )
            environ = Path(f"/proc/{skopeo}/environ").read_bytes()
            assert sys.prefix.encode() not in environ and str(tmp_path).encode() not in environ
    finally:
        pull.kill()
        pull.communicate()


# What a program does there that was taken over. Its working directory is the one that it fills.
ATTACK = """
import ctypes, errno, json, os, resource, socket, sys

def tried(action, *args):
    try:
        action(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

libc = ctypes.CDLL(None, use_errno=True)

def unshare():
    if libc.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "")

status = dict(line.split(":", 1) for line in open("/proc/self/status"))
tmp = os.statvfs("/tmp")
print(json.dumps({
    "descriptors": sum(tried(os.fstat, fd) == "done" for fd in range(3, 1000)),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "queues": resource.getrlimit(resource.RLIMIT_MSGQUEUE),
    "file size": resource.getrlimit(resource.RLIMIT_FSIZE),
    "caps": sum(int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapBnd")),
    "no_new_privs": int(status["NoNewPrivs"]),
    "interfaces": sorted(x.split(":")[0].strip() for x in list(open("/proc/net/dev"))[2:]),
    "connect": tried(socket.create_connection, ("127.0.0.1", int(sys.argv[1]))),
    "namespace": tried(unshare),
    "own": tried(open, "own", "w"),
    "tmp": tried(open, "/tmp/own", "w"),
    "given": tried(os.open, "/given/file", os.O_WRONLY),
    "null": tried(os.open, "/dev/null", os.O_WRONLY),
    "zero": tried(os.open, "/dev/zero", os.O_WRONLY),
    "tmp bytes": tmp.f_blocks * tmp.f_frsize,
    "tmp files": tmp.f_files,
    "stdin": os.read(0, 1).decode(),
    "mounts": [x.split()[4:6] for x in open("/proc/self/mountinfo")],
}))
"""


def test_what_was_taken_over_has_its_folder_and_nothing_else(
    tmp_path: Path, registry: socket.socket
) -> None:
    """Each control by what only it keeps away."""
    (work := tmp_path / "work").mkdir()
    (given := tmp_path / "given").mkdir()
    (given / "file").touch()
    for path in (given / "file", given):
        path.chmod(0o777)
    said: list[str] = []
    words = ["python3", "-I", "-c", ATTACK, str(registry.getsockname()[1])]
    most, reads = 1 << 20, {"/given": str(given)}
    tools.run(words, work=str(work), reads=reads, seconds=120, say=said.append, file_size=most)
    found = json.loads(said[-1])
    assert found["core"] == found["queues"] == [0, 0]
    assert found["file size"] == [most, most] != list(resource.getrlimit(resource.RLIMIT_FSIZE))
    assert (found["no_new_privs"], found["caps"] if os.geteuid() == 0 else 0) == (1, 0)
    assert found["interfaces"] == ["lo"] and found["connect"] != "done"
    assert found["namespace"] == "EPERM"
    assert (found["own"], found["tmp"], found["null"]) == ("done", "done", "done")
    assert found["given"] == "EROFS"
    assert not landlock.abi_version() or found["zero"] == "EACCES"
    assert (found["tmp bytes"], found["tmp files"]) == (64 << 20, 4096)
    assert (found["stdin"], found["descriptors"]) == ("", 0)
    for place, how in found["mounts"]:
        assert "nosuid" in how.split(","), place
        is_written = place in ("/mnt/work", "/tmp", "/proc") or place.startswith("/dev/")
        assert is_written or "ro" in how.split(","), place
