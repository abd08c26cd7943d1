"""Threat: using up what the kernel has a fixed number of, for the whole machine: events of native
AIO, huge pages, flow labels, terminals. What a group or a user has of them is not counted.

Controls: seccomp, with the answers of a kernel that has none; a bound of each sandbox's devpts.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest

TAKE = """
MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_HUGETLB = 2, 0x20, 0x4000, 0x40000
def mapped(flags):
    got = call("mmap", 0, 4 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0)
    return got if isinstance(got, str) else "mapped"
def memory(flags):
    got = call("memfd_create", b"x", flags)
    return got if isinstance(got, str) else "made"
context = ctypes.create_string_buffer(8)
said("aio", call("io_setup", 8, context))
said("huge", mapped(MAP_HUGETLB))
said("small", mapped(0))
said("huge file", memory(4))
said("small file", memory(0))
"""
SHARED = """
said("huge", call("shmget", 0, 4 << 20, 0o1600 | 0o4000))
said("small", call("shmget", 0, 4096, 0o1600) != "ENOSYS")
"""
LABEL = """
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:  # IPV6_FLOWLABEL_MGR
    label = socket.inet_pton(socket.AF_INET6, "::1") + struct.pack(">I", os.getpid() + 77)
    wanted = label + struct.pack("=BBHHHI", 0, 255, 1, 6, 6, 0)
    said("label", tried(sock.setsockopt, socket.IPPROTO_IPV6, 32, wanted))
"""
TERMINALS = """
held = []
try:
    while True:
        held.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
except OSError as error:
    said("why", errno.errorcode[error.errno])
said("terminals", len(held))
"""


def test_none_of_them_is_taken(sandbox: Callable[..., Any], walled: str) -> None:
    assert sandbox(walled).attack(TAKE) == {
        "aio": "ENOSYS",
        "huge": "ENOMEM",
        "small": "mapped",
        "huge file": "ENOMEM",
        "small file": "made",
    }


def test_off_they_are_taken(sandbox: Callable[..., Any], walled: str) -> None:
    answers = sandbox(walled, without={"seccomp"}).attack(TAKE)
    assert answers["aio"] in {"0", "EAGAIN"}
    if os.path.isdir("/sys/kernel/mm/hugepages"):
        assert (answers["huge"], answers["huge file"]) == ("mapped", "made")


def test_nor_huge_pages_as_shared_memory(sandbox: Callable[..., Any]) -> None:
    assert sandbox("linux").attack(SHARED) == {"huge": "ENOSYS", "small": "True"}


@pytest.mark.parametrize("spec", [{}, {"user": "root"}, {"net": "host"}], ids=str)
@pytest.mark.parametrize("wall", ["linux", "oci"])
def test_nor_flow_labels(sandbox: Callable[..., Any], wall: str, spec: dict[str, str]) -> None:
    assert sandbox(wall, **spec).attack(LABEL) == {"label": "EPERM"}


def test_off_they_have_flow_labels(sandbox: Callable[..., Any]) -> None:
    said = sandbox("linux", without={"seccomp"}).attack(LABEL)
    assert said["label"] in {"None", "ENOBUFS"}  # the machine's others may have them all


def test_one_sandbox_has_a_part_of_the_terminals(sandbox: Callable[..., Any]) -> None:
    first, other = sandbox("linux", open_files=1000), sandbox("linux")
    assert first.attack(TERMINALS) == {"why": "ENOSPC", "terminals": "512"}
    assert other.run(["sh", "-c", "echo on > /tmp/on; cat /tmp/on"]).stdout == "on\n"
