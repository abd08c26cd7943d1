"""A virtual machine's network card: address, route, resolvers (netdevice(7), IPv4)."""

import contextlib
import errno
import fcntl
import os
import socket
import struct
import time

from agentd.linux.net import device_up

_SIOCADDRT = 0x890B
_SIOCSIFADDR, _SIOCSIFNETMASK = 0x8916, 0x891C
_RTF_UP, _RTF_GATEWAY = 1, 2
# struct ifreq: a name, then a union of 24 bytes; struct sockaddr_in: family, port, address.
_ADDRESS = struct.Struct("=16sHH4s16x")
# struct rtentry of 64 bits: pad, destination, gateway and mask as sockaddr, flags, and the rest.
_ROUTE = struct.Struct("=Q HH4s8x HH4s8x HH4s8x H 62x")
_MAX_NAME = 15
_DRIVER = "virtio_net"
_MODPROBE = ("/sbin/modprobe", "/usr/sbin/modprobe")
_PROBE_S, _POLL_S = 1.0, 0.01


def interfaces() -> list[str]:
    """Lists those that are no loopback, sorted."""
    try:
        return sorted(name for name in os.listdir("/sys/class/net") if name != "lo")
    except OSError:
        return []


def find() -> str:
    """Finds the first card, its driver loaded if need be: there is no udev here. Raises OSError."""
    for program in _MODPROBE:
        if interfaces() or not os.path.exists(program):
            continue
        pid = os.posix_spawn(program, ["modprobe", _DRIVER], {})
        os.waitpid(pid, 0)
    deadline = time.monotonic() + _PROBE_S
    while not interfaces():
        if time.monotonic() > deadline:
            raise OSError(errno.ENODEV, "there is no network card")
        time.sleep(_POLL_S)
    return interfaces()[0]


def parse(address: str) -> tuple[bytes, bytes]:
    """Parses ``A.B.C.D/N`` as address and mask. Raises ValueError."""
    text, slash, length = address.partition("/")
    bits = int(length) if slash and length.isdecimal() else -1
    if not 0 <= bits <= 32:
        raise ValueError(f"{address!r} is no IPv4 address with a prefix length")
    mask = (0xFFFFFFFF << (32 - bits)) & 0xFFFFFFFF
    return parse_host(text), mask.to_bytes(4, "big")


def parse_host(address: str) -> bytes:
    """Parses an address. Raises ValueError."""
    try:
        return socket.inet_pton(socket.AF_INET, address)
    except (OSError, UnicodeError):
        raise ValueError(f"{address!r} is no IPv4 address") from None


def configure(name: str, address: bytes, mask: bytes, gateway: bytes | None) -> None:
    """Give ``name`` its address, bring it up, and send all else to the gateway. Raises OSError."""
    raw = name.encode()
    if not raw or len(raw) > _MAX_NAME:
        raise OSError(errno.ENODEV, f"no network device {name!r}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, mask)):
            fcntl.ioctl(any_socket, request, _ADDRESS.pack(raw, socket.AF_INET, 0, value))
        device_up(name)
        if gateway is not None:
            with contextlib.suppress(FileExistsError):  # asked for again
                fcntl.ioctl(any_socket, _SIOCADDRT, _default_route(gateway))


def _default_route(gateway: bytes) -> bytes:
    any_ = (socket.AF_INET, 0, bytes(4))
    via = (socket.AF_INET, 0, gateway)
    return _ROUTE.pack(0, *any_, *via, *any_, _RTF_UP | _RTF_GATEWAY)
