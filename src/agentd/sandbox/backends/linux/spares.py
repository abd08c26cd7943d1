"""The clones that a zygote makes ahead of the requests for them, one of each kind that is asked
for."""

import contextlib
import os
import signal
import socket
from collections import OrderedDict
from typing import NamedTuple

from agentd.linux.waiting import is_ready
from agentd.sandbox.backends.identity import Block

# Who asks once may never ask again, and shall not pay for a spare.
OFTEN = 2
# Of these many kinds, those that were asked for last: each is an idle process.
MOST_KINDS = 5
_REMEMBERED = 64


class ImageFiles(NamedTuple):
    """The unpacked root of an image: which directory, and of what."""

    digest: str
    device: int
    inode: int


class SpareKind(NamedTuple):
    """What a clone has done before it is asked for anything, and so cannot do otherwise."""

    uid: int
    writable: bool = False
    image: ImageFiles | None = None
    #: Whether its workspace is to be a mount: that of an image may have files, too.
    mounted: bool = False


class Spare(NamedTuple):
    """A clone that waits for its request: its pidfd, the host's end of its listener, and whose ids
    it has."""

    pidfd: int
    listener: socket.socket
    block: Block | None

    def close(self) -> None:
        """Ends it; its block is released by whoever sees that."""
        self.listener.close()
        os.close(self.pidfd)

    def end(self) -> None:
        """End it, and free what it had."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self.close()
        if self.block is not None:
            self.block.release(ended=False)


class AskedSpare(NamedTuple):
    """One that the zygote was asked for, by ``number``; ``listener`` is the host's end."""

    number: int
    listener: socket.socket
    block: Block | None

    def end(self) -> None:
        """Its clone, should there ever be one, finds nobody at the other end, and ends."""
        self.listener.close()
        if self.block is not None:
            self.block.release(ended=False)


class Spares:
    """Owns those that wait. Not thread-safe: the nursery's lock is around it."""

    def __init__(self) -> None:
        self._asked: OrderedDict[SpareKind, int] = OrderedDict()
        self._ready: dict[SpareKind, Spare] = {}
        self._coming: dict[SpareKind, AskedSpare] = {}

    def take(self, kind: SpareKind) -> Spare | None:
        return self._ready.pop(kind, None)

    def wants(self, kind: SpareKind) -> bool:
        """Count that ``kind`` was asked for. True where one more is to be made ahead."""
        self._asked[kind] = self._asked.get(kind, 0) + 1
        self._asked.move_to_end(kind)
        while len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)
        self._give_up_lost()
        return self._asked[kind] >= OFTEN and kind not in self._ready and kind not in self._coming

    def expect(self, kind: SpareKind, coming: AskedSpare) -> None:
        """It was asked for; what was asked for longest ago makes room for it."""
        kept = set(list(self._asked)[-MOST_KINDS:])
        for each in self._ready.keys() - kept:
            self._ready.pop(each).end()
        for each in self._coming.keys() - kept:
            self._coming.pop(each).end()
        self._coming[kind] = coming

    def arrived(self, number: int, pidfd: int) -> None:
        for kind, coming in self._coming.items():
            if coming.number == number:
                del self._coming[kind]
                self._ready[kind] = Spare(pidfd, coming.listener, coming.block)
                return
        os.close(pidfd)  # nobody waits for it any more, and it ends

    def give_up(self, kind: SpareKind) -> None:
        """One that could not be asked for."""
        if (coming := self._coming.pop(kind, None)) is not None:
            coming.end()

    def give_up_coming(self) -> None:
        for kind in list(self._coming):
            self.give_up(kind)

    def close(self) -> list[Block]:
        """Let go of all; the blocks are the caller's to release."""
        ready, self._ready = self._ready, {}
        coming, self._coming = self._coming, {}
        for spare in ready.values():
            spare.close()
        for each in coming.values():
            each.listener.close()
        blocks = [spare.block for spare in ready.values()]
        blocks += [each.block for each in coming.values()]
        return [block for block in blocks if block is not None]

    def _give_up_lost(self) -> None:
        """Those of which the zygote made nothing: it has closed the other end."""
        for kind, coming in list(self._coming.items()):
            if is_ready(coming.listener, events=0):
                self.give_up(kind)
