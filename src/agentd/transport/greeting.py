"""What an agent answers to the first line of a stream. Sans I/O."""

import msgspec

from agentd.guest import wire
from agentd.model import typed
from agentd.model.errors import GuestError
from agentd.transport.text import safe_text


class _Boot(msgspec.Struct):
    instance: str = ""


class _Reply(msgspec.Struct):
    agentd: int | None = None
    features: tuple[str, ...] = ()
    boot: _Boot | None = None
    exit_code: int | None = None
    error: str | None = None


_MAX_INSTANCE = 64
_DECODER = typed.decoder(_Reply)


class Greeting:
    """Takes bytes until it has the line: then ``line`` is it, and ``rest`` what came after."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.line: bytes | None = None
        self.rest = b""
        #: Of the agent's process, "" where it tells none: another one knows nothing of the first's.
        self.instance = ""
        #: What the agent offers; None until ``protocol`` has found it to be 2.
        self.features: frozenset[str] | None = None

    def feed(self, data: bytes) -> bool:
        """Return whether the line is whole. Raises GuestError for one that is too long."""
        start = len(self._buffer)
        self._buffer += data
        end = self._buffer.find(b"\n", start)
        if (len(self._buffer) if end < 0 else end) > wire.MAX_HELLO_REPLY:
            raise GuestError(f"the agent's greeting is over {wire.MAX_HELLO_REPLY} bytes")
        if end >= 0:
            self.line, self.rest = bytes(self._buffer[:end]), bytes(self._buffer[end + 1 :])
        return end >= 0

    def protocol(self) -> int:
        """Return 2 or 1, the version of the protocol. Raises GuestError."""
        try:
            reply = _DECODER.decode(self.line or b"")
        except (ValueError, RecursionError) as error:
            why = safe_text(str(error))
            raise GuestError("the agent's greeting is malformed", cause=why) from None
        if reply.agentd == 2:
            self.features = frozenset(reply.features)
            self.instance = "" if reply.boot is None else reply.boot.instance[:_MAX_INSTANCE]
            return 2
        refused = (reply.error or "").startswith("Invalid request")
        if reply.exit_code == -1 and refused and not self.rest:
            return 1
        raise GuestError("the agent speaks neither protocol v2 nor v1")
