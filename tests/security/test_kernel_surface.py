"""Threat: kernel exploits through rarely used interfaces, and calls that run the whole machine.

Control: seccomp. Behind it, for what only the machine's owner may do, the dropped capabilities.
Every call is made with arguments that the kernel refuses, so that it does nothing where it passes;
its own answer then differs from the filter's EPERM.
"""

from collections.abc import Callable
from typing import Any

import pytest

CALLS: dict[str, tuple[int, ...]] = {
    # large interfaces with a record of exploits
    "bpf": (0, 1, 8192),
    "perf_event_open": (0, 0, -1, -1, 0),
    "userfaultfd": (-1,),
    "io_uring_setup": (0, 0),
    "io_uring_enter": (-1, 0, 0, 0, 0, 0),
    "io_uring_register": (-1, 0, 0, 0),
    "memfd_secret": (-1,),
    "setsockopt": (-1, 1, 26, 0, 0),  # SO_ATTACH_FILTER
    # obsolete
    "modify_ldt": (99, 0, 0),
    "lookup_dcookie": (0, 0, 0),
    "uselib": (0,),
    "ustat": (0, 0),
    "sysfs": (999, 0, 0),
    "_sysctl": (0,),
    "nfsservctl": (0, 0, 0),
    # keyrings: the user's, not a namespace's
    "add_key": (0, 0, 0, 0, 0),
    "request_key": (0, 0, 0, 0),
    "keyctl": (9999, 0, 0, 0, 0),
    "ioctl": (-1, 0xC0406618, 0),  # FS_IOC_REMOVE_ENCRYPTION_KEY
    # others' files
    "fcntl": (-1, 1024, 0),  # F_SETLEASE
    # the machine
    "kexec_load": (0, 0, 0, -1),
    "kexec_file_load": (-1, -1, 0, 0, -1),
    "init_module": (0, 0, 0),
    "finit_module": (-1, 0, -1),
    "delete_module": (0, 0),
    "reboot": (0, 0, 0, 0),  # without its magic numbers: EINVAL
    "swapon": (0, -1),
    "swapoff": (1,),
    "syslog": (999, 0, 0),
    "acct": (1,),
    "quotactl": (-1, 0, 0, 0),
    "quotactl_fd": (-1, 0, 0, 0),
    "iopl": (4,),
    "ioperm": (-1, 1, 1),
    "sethostname": (1, -1),
    "setdomainname": (1, -1),
    # the clock; 1 is an address that nobody may read
    "settimeofday": (1, 0),
    "clock_settime": (-1, 0),
    "clock_adjtime": (-1, 0),
    "adjtimex": (1,),
    # other processes' memory, the watch over a whole file system, and what /proc says of us
    "move_pages": (0, -1, 0, 0, 0, -1),
    "migrate_pages": (0, -1, 0, 0),
    "fanotify_init": (-1, -1),
    "personality": (0x0040000,),  # ADDR_NO_RANDOMIZE, of the calling process
    "prctl": (35, 0, 0, 0, 1),  # PR_SET_MM
    "seccomp": (1, 8, 0),  # SECCOMP_FILTER_FLAG_NEW_LISTENER
    "lsm_set_self_attr": (0, 0, 0, -1),
}
# What the capabilities stop by themselves, even as root in a user namespace.
OWNERS = ("reboot", "sethostname", "setdomainname", "swapoff", "syslog", "acct", "fanotify_init")

MAKE = f"""
for name, args in {CALLS!r}.items():
    if name in NR:
        said(name, call(name, *args))
"""


def test_no_call_reaches_the_kernel(sandbox: Callable[..., Any], walled: str) -> None:
    answers = sandbox(walled).attack(MAKE)
    assert {name: answer for name, answer in answers.items() if answer != "EPERM"} == {}
    assert {"bpf", "io_uring_setup", "keyctl", "init_module", "clock_settime"} <= set(answers)


@pytest.mark.root
def test_off_every_call_reaches_the_kernel(sandbox: Callable[..., Any]) -> None:
    """Run by root with its capabilities, so that no other layer has an EPERM of its own."""
    answers = sandbox("landlock", without={"seccomp", "identity", "capabilities"}).attack(MAKE)
    assert [name for name, answer in answers.items() if answer == "EPERM"] == []


def test_seccomp_stops_root_with_every_capability(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux", without={"capabilities", "landlock"}, user="root")
    answers = box.attack(MAKE)
    assert {name: answer for name, answer in answers.items() if answer != "EPERM"} == {}


def test_dropped_capabilities_are_the_second_lock(sandbox: Callable[..., Any]) -> None:
    answers = sandbox("linux", without={"seccomp"}, user="root").attack(MAKE)
    assert {name: answers[name] for name in OWNERS} == dict.fromkeys(OWNERS, "EPERM")
    off = sandbox("linux", without={"seccomp", "capabilities"}, user="root").attack(MAKE)
    assert [off[name] for name in OWNERS[:3]] == ["EINVAL"] * 3
    # The rest want capabilities over the machine, which a user namespace never gives.
    assert {off[name] for name in OWNERS[3:]} == {"EPERM"}
