"""The loopback device of a network namespace."""

import fcntl
import socket
import struct
from collections.abc import Callable

from agentd.linux import abi

# struct ifreq: a name of 16 bytes, then a union of 24 whose first member here is a short of flags.
_IFREQ = struct.Struct("=16sh22x")


def loopback_up(ioctl: Callable[[int, int, bytes], bytes] = fcntl.ioctl) -> None:
    """Bring ``lo`` up in the caller's network namespace: a new one is born with it down.

    Needs CAP_NET_ADMIN there. Raises OSError.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fd = any_socket.fileno()
        answer = ioctl(fd, abi.SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
        flags = _IFREQ.unpack(answer)[1]
        ioctl(fd, abi.SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | abi.IFF_UP))
