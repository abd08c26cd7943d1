"""Filters that name what is allowed, interpreted on both machines."""

import errno
import socket

import pytest
from tests.unit.linux.seccomp.test_filter import ALLOW, ARCH, KILL, decode, fails, run

from agentd.egress.relay.confine import CALLS, CHECKS
from agentd.linux.seccomp.allowed import build_allowing
from agentd.linux.seccomp.tables import MACHINES, numbers

PERM = fails(errno.EPERM)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_not_named_is_refused(machine: str) -> None:
    code = decode(build_allowing("read socket", machine=machine))
    for name, number in numbers(machine).items():
        assert run(code, ARCH[machine], number) == (ALLOW if name in ("read", "socket") else PERM)
    assert run(code, 0x40000003, 3) == KILL
    assert run(code, ARCH[machine], 5000) == fails(errno.ENOSYS)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("call", "args", "passes"),
    [
        ("socket", (socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC), True),
        ("socket", (socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK), True),
        ("socket", (socket.AF_UNIX, socket.SOCK_STREAM), False),
        ("socket", (socket.AF_NETLINK, socket.SOCK_RAW), False),
        ("socket", (socket.AF_INET, socket.SOCK_RAW), False),
        ("setsockopt", (0, socket.IPPROTO_TCP, socket.TCP_NODELAY), True),
        ("setsockopt", (0, socket.SOL_SOCKET, 26), False),  # SO_ATTACH_FILTER
        ("setsockopt", (0, socket.IPPROTO_TCP, 31), False),  # TCP_ULP
        ("mmap", (0, 4096, 3), True),
        ("mmap", (0, 4096, 7), False),
        ("mprotect", (0, 4096, 5), False),
        ("fcntl", (0, 1031), True),
        ("fcntl", (0, 0), False),  # F_DUPFD
        ("openat", (), False),
        ("execve", (), False),
        ("bind", (), False),
        ("kill", (), False),
        ("clone", (), False),
        ("clone3", (), False),
        ("io_uring_setup", (), False),
        ("splice", (), True),
    ],
)
def test_the_relay_may_do_what_it_does_and_no_more(
    machine: str, call: str, args: tuple[int, ...], passes: bool
) -> None:
    code = decode(build_allowing(CALLS, CHECKS, machine))
    assert run(code, ARCH[machine], numbers(machine)[call], args) == (ALLOW if passes else PERM)
