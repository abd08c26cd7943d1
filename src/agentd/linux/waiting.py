"""Waiting for one descriptor. Standard library only."""

import select
import socket


def is_ready(
    fd: int | socket.socket, seconds: float | None = 0, events: int = select.POLLIN
) -> bool:
    """Returns whether a descriptor has one of ``events``, or has hung up, within so many seconds,
    None without end. A pidfd has once its process has ended."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(None if seconds is None else seconds * 1000))
