"""Detached commands: their output in rings, their end kept for a late attach."""

import errno
import json
from collections.abc import Callable

from agentd.guest.operation import RequestError
from agentd.guest.output import NO_LIMIT, RING_BYTES, STDERR, STDOUT, OutputRing
from agentd.guest.process import ExitInfo, GuestProcess

MAX_RUNNING = 64
MAX_EXITED = 256
# JSON bytes of the arguments that each of those keeps: so many exited ones hold little.
KEPT_ARGV = 4 << 10
# Rings of exited commands in all; over it the oldest are forgotten first.
MAX_EXITED_BYTES = 32 << 20


def is_named(process: GuestProcess, pid: object, tag: object) -> bool:
    """Returns whether it is the command of that pid, else of that tag."""
    return process.pid == pid if pid is not None else tag is not None and process.tag == tag


def beginning(argv: list[str], most: int) -> list[str]:
    """Returns as much of a command as takes so many bytes of JSON."""
    kept: list[str] = []
    for word in argv:
        size = len(json.dumps(word)) + 1
        if size > most:  # a character takes twelve bytes at most, two escapes
            return [*kept, f"{word[: most // 12]}..."]
        most -= size
        kept.append(word)
    return kept


class DetachedCommand:
    """A detached command. ``info`` is None while it runs or still has output to deliver."""

    process: GuestProcess

    def __init__(self, *, held: bool = False) -> None:
        """``held``: it waits for its first follower once the rings are full."""
        self.rings = {STDOUT: OutputRing(), STDERR: OutputRing()}
        # Who must not miss anything: how many bytes each has not taken yet.
        self.holders: list[Callable[[], int]] = [self._unseen] if held else []
        self.info: ExitInfo | None = None
        # Called when there is more output, and when it has ended.
        self.followers: list[Callable[[], None]] = []
        self.forget: Callable[[], None] | None = None

    def on_output(self, stream: int, data: bytes) -> None:
        self.rings[stream].append(data)
        self._tell()

    def on_exit(self, info: ExitInfo) -> None:
        self.info = info
        self.process.argv = beginning(self.process.argv, KEPT_ARGV)
        if self.forget is not None:
            self.forget()
        self._tell()

    def window(self) -> int:
        """Counts the bytes until somebody who holds it would miss some."""
        if not self.holders:
            return NO_LIMIT
        return max(0, RING_BYTES - max(lag() for lag in self.holders))

    def hold(self, lag: Callable[[], int]) -> None:
        if self._unseen in self.holders:
            self.holders.remove(self._unseen)
        self.holders.append(lag)

    def release(self, lag: Callable[[], int]) -> None:
        """Has it held up no longer by this one; harmless where it never was."""
        if lag in self.holders:
            self.holders.remove(lag)
            self.process.resume_output()

    def _unseen(self) -> int:
        return max(ring.end for ring in self.rings.values())

    def held(self) -> int:
        return sum(len(ring) for ring in self.rings.values())

    def _tell(self) -> None:
        for follower in list(self.followers):
            follower()


class History:
    """The detached commands of an agent, oldest first."""

    def __init__(self) -> None:
        self._records: list[DetachedCommand] = []

    def all(self) -> list[DetachedCommand]:
        return list(self._records)

    def close(self) -> None:
        """End what runs, and what has exited and still has its output waited for."""
        for record in self._records:
            record.process.abandon()

    def admit(self, tag: str | None) -> None:
        """Lets one more in. Raises RequestError when it is too many, or its tag is taken."""
        running = [record for record in self._records if record.info is None]
        if len(running) >= MAX_RUNNING:
            raise RequestError(f"{MAX_RUNNING} detached commands run already", errno.EAGAIN)
        if tag is not None and any(record.process.tag == tag for record in running):
            raise RequestError(f"a detached command tagged {tag!r} runs already", errno.EEXIST)

    def add(self, record: DetachedCommand) -> None:
        record.forget = self._trim
        self._records.append(record)

    def drop(self, record: DetachedCommand) -> None:
        """Drops one that never began."""
        self._records.remove(record)

    def find(self, pid: object, tag: object) -> DetachedCommand | None:
        """Finds one by pid, else by tag; the youngest where several had it."""
        for record in reversed(self._records):
            if is_named(record.process, pid, tag):
                return record
        return None

    def _trim(self) -> None:
        exited = [record for record in self._records if record.info is not None]
        held = sum(record.held() for record in exited)
        # The youngest stays, whatever it holds.
        while len(exited) > 1 and (len(exited) > MAX_EXITED or held > MAX_EXITED_BYTES):
            oldest = exited.pop(0)
            held -= oldest.held()
            self._records.remove(oldest)
