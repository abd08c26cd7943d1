"""The end of a stream that nobody may let grow. Standard library only."""


class LogRing:
    """Keeps the last ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > self._size:
            del self._data[: len(self._data) - self._size]

    def text(self, length: int) -> str:
        """Return at most ``length`` characters of its end; what is not UTF-8 becomes U+FFFD."""
        return bytes(self._data[-length:]).decode(errors="replace")
