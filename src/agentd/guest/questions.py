"""What the filter around the commands asks: whether a call may go on (seccomp_unotify(2)).

All that is looked at are the call's arguments, which lie in registers: nobody changes them.
"""

import contextlib
import errno
import fcntl
import struct

from agentd.guest import tracing
from agentd.linux import abi

# linux/seccomp.h: SECCOMP_IOCTL_NOTIF_RECV, _SEND, and SECCOMP_USER_NOTIF_FLAG_CONTINUE
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
# struct seccomp_notif: the id, the caller, flags, then struct seccomp_data with six arguments
_ASKED = struct.Struct("=QI4xi4xQ6Q")
_ANSWER = struct.Struct("=QqiI")
# What is unread in one takes up to twice net.core.rmem_max, 4 MiB since Linux 6.17.
_MAX_NETLINK_SOCKETS = 32


def answer(listener: int) -> None:
    """Answer one question, if there is one."""
    asked = bytearray(_ASKED.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, asked)
    except OSError:
        return  # it has been killed meanwhile
    id_, caller, call, _address, *arguments = _ASKED.unpack(asked)
    if call == abi.SYS.socket:
        may, refusal = _netlink_sockets() < _MAX_NETLINK_SOCKETS, errno.EOPNOTSUPP
    else:
        tracee = arguments[1] & 0xFFFFFFFF  # as the kernel cuts it
        may, refusal = tracing.may_see_exit(caller, tracee), errno.EPERM
    said = _ANSWER.pack(id_, 0, 0 if may else -refusal, _CONTINUE if may else 0)
    with contextlib.suppress(OSError):
        fcntl.ioctl(listener, _SEND, said)


def _netlink_sockets() -> int:
    """Count those of this network namespace; /proc/net/netlink lists only those that have an
    address. One that was allowed and is not made yet is not counted: one a thread at most."""
    try:
        with open("/proc/net/protocols", "rb") as file:
            for line in file:
                if line.startswith(b"NETLINK "):
                    return int(line.split()[2])
    except (OSError, ValueError, IndexError):
        pass
    return _MAX_NETLINK_SOCKETS
