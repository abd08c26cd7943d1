"""What the relay gives up before it takes the first sandbox: it parses what hostile ends send."""

import contextlib
import os
import socket
from collections.abc import Sequence
from fcntl import F_GETFL, F_SETFL

from agentd.linux import caps, landlock, process
from agentd.linux.kernel import KERNEL
from agentd.linux.seccomp import install
from agentd.linux.seccomp.allowed import build_allowing
from agentd.linux.seccomp.rule import ArgumentMatch, Rule, not_zero

_SETPIPE_SZ = 1031  # F_SETPIPE_SZ, linux/fcntl.h
_FIONREAD, _FIONBIO = 0x541B, 0x5421  # asm-generic/ioctls.h
_PROT_EXEC = 4
_FILTER_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC

# What an event loop over sockets and pipes calls, and what CPython calls for memory and its lock.
# No file can be opened, no process started or signalled, nothing mapped executable.
CALLS = """
accept4 close connect epoll_create1 epoll_ctl epoll_pwait epoll_wait fcntl fstat getpeername
getsockname getsockopt ioctl newfstatat pipe2 read recvfrom recvmsg sendmsg sendto setsockopt
shutdown socket socketpair splice write
brk clock_gettime clock_nanosleep exit exit_group futex getpid getrandom gettid madvise mmap
mprotect mremap munmap restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sched_yield
"""
_LEVELS = (socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6)
# TCP_NODELAY, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, IP_PKTINFO, SO_SNDBUF, SO_RCVBUF,
# SO_KEEPALIVE, SO_LINGER and IPV6_RECVPKTINFO: by their numbers, whatever the level.
_OPTIONS = (1, 4, 5, 6, 7, 8, 9, 13, 49)
CHECKS = (
    Rule(
        "sockets",
        "socket",
        "only TCP and UDP are dialled: no unix socket of the host's is within reach",
        (ArgumentMatch(0, "family", (socket.AF_INET, socket.AF_INET6), inside=False),),
    ),
    Rule(
        "sockets",
        "socketpair",
        "connected to each other, and to nobody else; a datagram one could be connected anew",
        (
            ArgumentMatch(
                1, "type", (socket.SOCK_STREAM,), mask=~_FILTER_FLAGS & 0xFFFFFFFF, inside=False
            ),
        ),
    ),
    Rule(
        "sockets",
        "socketpair",
        "the same",
        (ArgumentMatch(0, "family", (socket.AF_UNIX,), inside=False),),
    ),
    Rule(
        "sockets",
        "socket",
        "no raw and no packet sockets, whatever the privilege",
        (
            ArgumentMatch(
                1,
                "type",
                (socket.SOCK_STREAM, socket.SOCK_DGRAM),
                mask=~_FILTER_FLAGS & 0xFFFFFFFF,
                inside=False,
            ),
        ),
    ),
    Rule(
        "sockets",
        "setsockopt",
        "no filter is attached, no protocol's module loaded",
        (ArgumentMatch(1, "level", _LEVELS, inside=False),),
    ),
    Rule(
        "sockets",
        "setsockopt",
        "the same, by option",
        (ArgumentMatch(2, "optname", _OPTIONS, inside=False),),
    ),
    Rule("memory", "mmap mprotect", "no new code", (not_zero(2, "prot", _PROT_EXEC),)),
    Rule(
        "descriptors",
        "fcntl",
        "a pipe's size alone is set",
        (ArgumentMatch(1, "cmd", (_SETPIPE_SZ, F_GETFL, F_SETFL), inside=False),),
    ),
    Rule(
        "descriptors",
        "ioctl",
        "sockets are made not to block, and asked what they hold",
        (ArgumentMatch(1, "request", (_FIONREAD, _FIONBIO), inside=False),),
    ),
    Rule(
        "descriptors",
        "newfstatat",
        "only of a descriptor: AT_EMPTY_PATH",
        (ArgumentMatch(3, "flags", (0x1000,), inside=False),),
    ),
)


def confine(user: int | None, calls: str = CALLS, checks: Sequence[Rule] = CHECKS) -> list[str]:
    """Give up everything but the descriptors that are open, and ``calls`` within ``checks``; return
    what holds now.

    ``user`` is whose id to take, of root alone. Raises OSError where a part cannot be had; Landlock
    alone may be absent, for the filter leaves no call that takes a path.
    """
    process.raise_file_limit()
    held = []
    if user is not None:
        caps.drop_bounding_if_allowed()
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        held.append("user")
    caps.drop_all()
    process.set_no_new_privs()
    process.set_dumpable(False)
    held += ["capabilities", "no-new-privs", "not-dumpable"]
    with contextlib.suppress(OSError), landlock.Ruleset(handle_net=False) as rules:
        rules.restrict()
        held.append("landlock")
    install(build_allowing(calls, checks), KERNEL)
    held.append("seccomp")
    return held
