"""The devices of a network namespace."""

import errno
import fcntl
import socket
import struct
import sys
from collections.abc import Callable

from agentd.linux import abi

#: Of a socket's options, groups, keys and ancillary data: enough for 253 descriptors, three times.
OPTION_BYTES = 4096
_OPTION_MEMORY = "/proc/sys/net/core/optmem_max"
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14

# struct ifreq: a name of 16 bytes, then a union of 24 whose first member here is a short of flags.
_IFREQ = struct.Struct("=16sh22x")


def loopback_up(ioctl: Callable[[int, int, bytes], bytes] = fcntl.ioctl) -> None:
    """Bring ``lo`` up in the caller's network namespace: a new one is born with it down.

    Needs CAP_NET_ADMIN there. Raises OSError.
    """
    device_up("lo", ioctl)


def bound_options(write: Callable[[str, str], None]) -> bool:
    """Have the sockets of the caller's network namespace keep little beside what they are to send
    and have received: no control group counts that. False where the kernel has one number for the
    whole machine (before Linux 6.8), or we may not. Needs CAP_NET_ADMIN in a namespace of its own.
    """
    try:
        write(_OPTION_MEMORY, str(OPTION_BYTES))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return False
    return True


def device_up(name: str, ioctl: Callable[[int, int, bytes], bytes] = fcntl.ioctl) -> None:
    """Brings any device up, as ``loopback_up`` does."""
    packed = name.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fd = any_socket.fileno()
        answer = ioctl(fd, abi.SIOCGIFFLAGS, _IFREQ.pack(packed, 0))
        flags = _IFREQ.unpack(answer)[1]
        ioctl(fd, abi.SIOCSIFFLAGS, _IFREQ.pack(packed, flags | abi.IFF_UP))


def namespace_cookie(sock: socket.socket) -> int | None:
    """Returns a number of the network namespace that a socket is of: no other has the same until
    the machine is booted again. None where the kernel does not tell."""
    try:
        told = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return None
    return int.from_bytes(told, sys.byteorder)
