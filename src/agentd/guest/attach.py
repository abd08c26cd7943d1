"""The operation ``attach``: a detached command's output from a cursor on, live, then its end."""

import errno

from agentd.guest.exec import FRAME_OF, CommandControls, CommandOperations
from agentd.guest.history import DetachedCommand
from agentd.guest.operation import Channel, ChannelOperation, RequestError, get_bool, get_int
from agentd.guest.output import STDERR, STDOUT

CHUNK_BYTES = 256 << 10
MAX_CURSOR = (1 << 63) - 1
_NAMES = {STDOUT: "stdout", STDERR: "stderr"}


class Attach(CommandControls):
    """Each attacher has its own cursors and credit. A slow one holds up nobody unless it ``holds``:
    the command then waits, rather than have it miss anything.
    """

    def __init__(
        self,
        commands: CommandOperations,
        channel: Channel,
        record: DetachedCommand,
        cursors: dict[int, int],
        *,
        holds: bool,
    ) -> None:
        super().__init__(commands, channel)
        self._record, self._process = record, record.process
        self._cursors = {
            number: min(max(cursors[number], ring.start), ring.end)
            for number, ring in record.rings.items()
        }
        self._closed = False
        self._holds = holds
        if holds:
            record.hold(self._lag)
        channel.event(
            "attached",
            pid=record.process.pid,
            cursor={_NAMES[number]: cursor for number, cursor in self._cursors.items()},
        )
        record.followers.append(self._push)
        # Not from here: the channel does not know this operation yet.
        channel.loop.soon(self._push)

    def on_credit(self) -> None:
        self._push()

    def close(self) -> None:
        self._closed = True
        if self._push in self._record.followers:
            self._record.followers.remove(self._push)
        self._record.release(self._lag)

    def _lag(self) -> int:
        return max(ring.end - self._cursors[number] for number, ring in self._record.rings.items())

    def _push(self) -> None:
        if self._closed:
            return
        pushed = [self._push_stream(number) for number in (STDOUT, STDERR)]
        if self._holds:
            self._record.process.resume_output()
        if not all(pushed):
            return
        if self._record.info is not None:
            self._channel.finish("exited", **self._record.info.fields())

    def _push_stream(self, number: int) -> bool:
        """False when credit ran out before the end of the ring."""
        ring = self._record.rings[number]
        while self._cursors[number] < ring.end:
            credit = self._channel.credit()
            if not credit:
                return False
            at = self._cursors[number]
            cursor, data = ring.read(at, min(credit, CHUNK_BYTES))
            if cursor > at:
                # It was too slow for the ring: say so rather than skip in silence.
                self._channel.event("dropped", stream=_NAMES[number], bytes=cursor - at)
            self._cursors[number] = cursor + len(data)
            self._channel.send(FRAME_OF[number], data)
        return True


def attach(
    commands: CommandOperations, channel: Channel, request: dict[str, object], fds: list[int]
) -> ChannelOperation:
    record = commands.history.find(request.get("pid"), request.get("tag"))
    if record is None:
        commands.find(request)
        raise RequestError(
            "the command is not detached: its output goes to the connection that started it"
        )
    cursor = request.get("cursor")
    if cursor is None:
        cursor = {}
    if not isinstance(cursor, dict):
        raise RequestError("'cursor' must be an object", errno.EINVAL)
    cursors = {number: get_int(cursor, name, 0, 0, MAX_CURSOR) for number, name in _NAMES.items()}
    return Attach(commands, channel, record, cursors, holds=get_bool(request, "hold"))
