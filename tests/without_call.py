"""Runs a program under a seccomp filter that answers some system calls with an error, as those of
container engines do: ``python without_call.py sethostname=EPERM,clone3=ENOSYS -- agentd run ..``.

Standard library only: ordinary users run it, too.
"""

import ctypes
import errno
import os
import struct
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ARGUMENT = 16  # where the first one's lower half is in struct seccomp_data
#: x86-64; those that came with Linux 5.1 and later are the same everywhere.
NUMBERS = {
    "sendfile": 40, "clone": 56, "flock": 73, "chown": 92, "ptrace": 101, "setgroups": 116,
    "setfsuid": 122, "capset": 126, "personality": 135, "prctl": 157, "chroot": 161, "mount": 165,
    "setrlimit": 160, "umount2": 166, "pivot_root": 155, "sethostname": 170, "mq_open": 240,
    "socket": 41, "add_key": 248, "keyctl": 250, "waitid": 247, "unshare": 272, "fallocate": 285,
    "signalfd4": 289, "eventfd2": 290, "epoll_create1": 291, "inotify_init1": 294,
    "prlimit64": 302, "name_to_handle_at": 303, "setns": 308, "renameat2": 316, "seccomp": 317,
    "getrandom": 318, "memfd_create": 319, "bpf": 321, "userfaultfd": 323,
    "copy_file_range": 326, "statx": 332, "rseq": 334, "pidfd_send_signal": 424,
    "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431,
    "fsmount": 432, "pidfd_open": 434, "clone3": 435, "close_range": 436, "openat2": 437,
    "pidfd_getfd": 438, "faccessat2": 439, "mount_setattr": 442,
    "landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446,
}  # fmt: skip
#: What Docker's own profile refuses to a process without CAP_SYS_ADMIN, by call.
DOCKER = (
    "mount=EPERM,umount2=EPERM,unshare=EPERM,setns=EPERM,pivot_root=EPERM,sethostname=EPERM,"
    "open_tree=EPERM,move_mount=EPERM,fsopen=EPERM,fsconfig=EPERM,fsmount=EPERM,"
    "mount_setattr=EPERM,bpf=EPERM,clone3=ENOSYS,clone:namespaces=EPERM,keyctl=EPERM,"
    "add_key=EPERM,userfaultfd=EPERM,io_uring_setup=EPERM,name_to_handle_at=EPERM"
)
_NAMESPACES = 0x7E020000  # CLONE_NEW*
_NETLINK_NETFILTER = 12  # of socket(2)'s protocols


def _step(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def program(refused: str) -> bytes:
    """The filter: ``NAME=ERRNO``, ``NAME:namespaces=ERRNO``, ``socket:netfilter=ERRNO``, with
    commas between."""
    steps = _step(_LOAD, 0, 0, 0)
    for word in refused.split(","):
        name, _, error = word.partition("=")
        name, _, part = name.partition(":")
        answer = _step(_RETURN, 0, 0, _ERRNO | getattr(errno, error))
        if part == "netfilter":
            steps += _step(_EQUAL, 0, 4, NUMBERS[name]) + _step(_LOAD, 0, 0, _ARGUMENT + 16)
            steps += _step(_EQUAL, 0, 1, _NETLINK_NETFILTER) + answer + _step(_LOAD, 0, 0, 0)
        elif part:
            steps += _step(_EQUAL, 0, 4, NUMBERS[name]) + _step(_LOAD, 0, 0, _ARGUMENT)
            steps += _step(_SET, 0, 1, _NAMESPACES) + answer + _step(_LOAD, 0, 0, 0)
        else:
            steps += _step(_EQUAL, 0, 1, NUMBERS[name]) + answer
    return steps + _step(_RETURN, 0, 0, _ALLOW)


def install(refused: str) -> None:
    """For this process and all that come of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    steps = program(refused)
    buffer = ctypes.create_string_buffer(steps, len(steps))
    table = struct.pack("=HxxxxxxQ", len(steps) // 8, ctypes.addressof(buffer))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(table, len(table)), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "no seccomp filter can be installed")


if __name__ == "__main__":
    separator = sys.argv.index("--")
    install(sys.argv[1])
    os.execvp(sys.argv[separator + 1], sys.argv[separator + 1 :])  # noqa: S606  what it is for
