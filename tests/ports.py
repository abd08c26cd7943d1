"""Ports for what takes none by itself and says which."""

import random
import socket
from pathlib import Path


def free() -> int:
    """One of 127.0.0.1 at which nothing listens: none that the kernel gives to others meanwhile."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, max(first, 20_000))  # noqa: S311  no secret
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
