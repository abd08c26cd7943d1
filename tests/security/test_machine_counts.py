"""Threat: using up what the kernel has a fixed number of, for the whole machine: events of native
AIO, huge pages, terminals. What a group or a user has of them is not counted.

Controls: seccomp, with the answers of a kernel that has none; a bound of each sandbox's devpts.
"""

import os
from collections.abc import Callable
from typing import Any

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


def test_one_sandbox_has_a_part_of_the_terminals(sandbox: Callable[..., Any]) -> None:
    first, other = sandbox("linux", open_files=1000), sandbox("linux")
    assert first.attack(TERMINALS) == {"why": "ENOSPC", "terminals": "512"}
    assert other.run(["sh", "-c", "echo on > /tmp/on; cat /tmp/on"]).stdout == "on\n"
