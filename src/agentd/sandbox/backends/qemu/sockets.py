"""Listening unix sockets without a name: only this process can connect to them, and whoever it
passes a descriptor to.

A sandbox of an ordinary user is that user to the kernel, and could connect to any socket in a
folder that is mounted in it. A descriptor of a socket's file (open(2), O_PATH) does for its name.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

from agentd.model.errors import BackendLost, SandboxError

_FILE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class NamelessSockets:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}

    def listen(self, name: str, path: str, backlog: int) -> socket.socket:
        """Return a listener, the caller's to close, that is ``name`` here, and is at ``path`` for a
        moment. Raises SandboxError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(path)
            try:
                file = os.open(path, _FILE)
            finally:
                os.unlink(path)
            with self._lock:
                self._files[name] = file
            listener.listen(backlog)
        except OSError as error:
            listener.close()
            raise SandboxError(f"cannot listen at {path}", cause=str(error)) from error
        return listener

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[int]:
        """Opens a descriptor of it, for as long as the block lasts. Raises BackendLost."""
        with self._lock:
            if name not in self._files:
                raise BackendLost("the virtual machine is gone")
            file = os.dup(self._files[name])
        try:
            yield file
        finally:
            os.close(file)

    @contextlib.contextmanager
    def place(self, name: str) -> Iterator[str]:
        """Yields its path, in this process. Raises BackendLost."""
        with self.file(name) as file:
            yield f"/proc/self/fd/{file}"

    def forget(self, name: str) -> None:
        """Closes one; idempotent."""
        with self._lock:
            file = self._files.pop(name, -1)
        if file >= 0:
            os.close(file)

    def close(self) -> None:
        """Closes all; idempotent."""
        for name in list(self._files):
            self.forget(name)
