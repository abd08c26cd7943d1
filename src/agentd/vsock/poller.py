"""epoll with handlers. Not ``selectors``, which hides EPOLLHUP: the far end is gone entirely."""

import select
import socket
from collections.abc import Callable

Handler = Callable[[int], None]
_MAX_EVENTS = 256


class Poller:
    """Handlers get the epoll events of their descriptor."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._retired: list[socket.socket] = []

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Raises OSError (EPERM) for what cannot be waited for, such as a plain file."""
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def forget(self, fd: int) -> None:
        if self._handlers.pop(fd, None):
            self._epoll.unregister(fd)

    def retire(self, sock: socket.socket) -> None:
        """Forget and close, at the end of the turn: until then its number cannot be another's,
        whose handler would get the events that this one still has."""
        self.forget(sock.fileno())
        self._retired.append(sock)

    def turn(self, timeout: float | None) -> None:
        """Wait for events, at most ``timeout`` seconds, and hand them out."""
        for fd, events in self._epoll.poll(timeout, _MAX_EVENTS):
            handler = self._handlers.get(fd)
            if handler:
                handler(events)
        self.bury()

    def bury(self) -> None:
        while self._retired:
            self._retired.pop().close()

    def close(self) -> None:
        self.bury()
        self._handlers.clear()
        self._epoll.close()
