"""How a connection to a host is begun."""

import errno
import socket

FAR_BUFFER = 64 << 10  # bytes that the kernel holds for a host that does not read
_KIND = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


def connecting(address: str, port: int, *, small: bool) -> tuple[socket.socket | None, int]:
    """Return the caller's socket, which is connected (0) or connecting (EINPROGRESS); none, and the
    error, where it cannot be. With ``small`` buffers it has ``FAR_BUFFER`` each way."""
    try:
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, _KIND, 0)
    except OSError as error:
        return None, error.errno or errno.EIO
    try:
        if small:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, FAR_BUFFER)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, FAR_BUFFER)
        why = made.connect_ex((address, port))
    except OSError as error:
        why = error.errno or errno.EIO
    if why not in (0, errno.EINPROGRESS):
        made.close()
        return None, why
    return made, why


def spoken(host: socket.socket | None) -> bool:
    """Return whether a host has said something that nobody took, and not hung up alone."""
    try:
        return host is not None and bool(host.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
