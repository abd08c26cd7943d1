"""A connection to a server inside a sandbox."""

from typing import Protocol


class Port(Protocol):
    """A byte stream to a port inside a sandbox."""

    def fileno(self) -> int:
        """Readable when ``recv`` has something, or when it is over."""

    def pending(self) -> bool:
        """Return whether ``recv`` returns at once without the descriptor being readable."""

    def send_some(self, data: bytes) -> int:
        """Return how many bytes were taken, maybe none; never waits for the other end to read. The
        descriptor becomes readable when it takes more again. Raises BackendLost at its end."""

    def recv(self, timeout: float | None = None) -> bytes:
        """b"" at the end. Raises TimeoutError."""

    def half_close(self) -> None: ...
    def close(self) -> None: ...
