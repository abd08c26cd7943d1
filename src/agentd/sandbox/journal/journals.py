"""All journals of a daemon: one folder, one thread that brings small pieces to disk."""

import contextlib
import heapq
import os
import re
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from functools import partial

from agentd.model.errors import InvalidInput
from agentd.sandbox import guard
from agentd.sandbox.journal.journal import Journal

_DELAY = 0.05  # seconds that a small piece may stay in memory alone
_RETRY = 0.5  # seconds between attempts at a disk that refuses
_KEPT = 256  # finished journals that are found without a look at the disk
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}(/[a-z0-9][a-z0-9_-]{0,63})?")


class Journals:
    """Thread-safe. ``total_bytes`` bounds the files of finished journals: the oldest of whoever
    has most go first, so that nobody's output takes another's place.

    A name is one or two parts of lower case letters, digits, "-" and "_", as "sbx-1/prc-2".
    """

    def __init__(
        self,
        folder: str,
        *,
        memory: int = 1 << 20,
        max_bytes: int = 64 << 20,
        total_bytes: int = 4 << 30,
        owner: Callable[[str], str] = lambda folder: "",
    ) -> None:
        """``memory`` and ``max_bytes`` of each journal. The folder is made, mode 0700. ``owner``
        tells whose a name's first part is."""
        os.makedirs(folder, 0o700, exist_ok=True)
        self.folder = folder
        self._memory = memory
        self._max_bytes = max_bytes
        self._total_bytes = total_bytes
        self._owner = owner
        self._guard = threading.Lock()
        self._open: dict[str, Journal] = {}
        self._finished: OrderedDict[str, Journal] = OrderedDict()
        self._dirty: dict[str, Journal] = {}
        self._since = total_bytes  # bytes of finished files since the last look: look at the first
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agentd-journal", daemon=True)
        self._thread.start()

    @property
    def works(self) -> bool:
        """Tells whether its thread lives."""
        return self._thread.is_alive()

    def create(self, name: str) -> Journal:
        """Makes a new one; nothing is on disk before there is output."""
        return self._add(name, fresh=True)

    def open(self, name: str) -> Journal:
        """Returns the one that is open, or what an earlier daemon left, to be read or continued.

        Of a process that wrote nothing there is nothing: its journal is empty, and not finished.
        One that is not finished is held until somebody does finish it. Raises OSError.
        """
        with self._guard:
            found = self._open.get(name) or self._finished.get(name)
        return found or self._add(name, fresh=False)

    def remove(self, name: str) -> None:
        """Delete what it has on disk. Who follows it is told of a gap."""
        journal = self.open(name)
        with self._guard:
            for known in (self._open, self._finished, self._dirty):
                known.pop(name, None)
        journal.remove()
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(journal.files.prefix))

    def trim(self) -> int:
        """Delete files of finished journals while all are too large: bytes deleted."""
        with self._guard:
            running = {journal.files.prefix for journal in self._open.values()}
        owned: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
        for folder, files in self._files().items():
            ended = [each for each in files if each[2].rpartition(".")[0] not in running]
            if ended:
                owned[self._owner(folder)] += ended
        for files in owned.values():
            files.sort(reverse=True)
        most = [(-sum(size for _, size, _ in files), owner) for owner, files in owned.items()]
        heapq.heapify(most)
        excess, freed = -sum(has for has, _ in most) - self._total_bytes, 0
        while most and freed < excess:
            has, owner = heapq.heappop(most)
            _, size, path = owned[owner].pop()
            if owned[owner]:
                heapq.heappush(most, (has + size, owner))
            with contextlib.suppress(OSError):
                os.unlink(path)
                freed += size
        return freed

    def close(self) -> None:
        """Flush and close all; idempotent."""
        self._closing.set()
        self._wake.set()
        self._thread.join()
        with self._guard:
            journals, self._open = [*self._open.values(), *self._finished.values()], {}
            self._finished.clear()
        for journal in journals:
            journal.close()

    def _add(self, name: str, fresh: bool) -> Journal:
        if not _NAME.fullmatch(name):
            raise InvalidInput(f"{name!r} is no name for a journal")
        journal = Journal(
            os.path.join(self.folder, name),
            memory=self._memory,
            max_bytes=self._max_bytes,
            on_dirty=partial(self._on_dirty, name),
            fresh=fresh,
        )
        with self._guard:
            if name in self._open:
                return self._open[name]
            self._open[name] = journal
            if journal.info is not None:
                self._shelve(name, journal)
        return journal

    def _on_dirty(self, name: str, journal: Journal) -> None:
        with self._guard:
            self._dirty[name] = journal
        self._wake.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(_DELAY)  # what comes meanwhile goes with it
            self._wake.clear()
            with self._guard:
                dirty, self._dirty = self._dirty, {}
            refused = [each for each in dirty.items() if not self._flushed(*each)]
            if refused:
                self._closing.wait(_RETRY)
                for each in refused:
                    self._on_dirty(*each)
            if self._since > self._total_bytes // 16:
                self._since = 0
                try:
                    self.trim()
                except Exception as error:
                    guard.tell(error)

    def _flushed(self, name: str, journal: Journal) -> bool:
        try:
            return self._flush(name, journal)
        except Exception as error:  # the output of all others goes through this thread, too
            guard.tell(error)
            return False

    def _flush(self, name: str, journal: Journal) -> bool:
        if not journal.flush():
            return False
        if journal.info is not None:
            with self._guard:
                self._since += journal.files.size
                self._shelve(name, journal)
        return True

    def _shelve(self, name: str, journal: Journal) -> None:
        """Under the guard: of a finished one the files are enough."""
        if self._open.get(name) is journal:
            del self._open[name]
            self._finished[name] = journal
            if len(self._finished) > _KEPT:
                self._finished.popitem(last=False)

    def _files(self) -> dict[str, list[tuple[float, int, str]]]:
        """When, how large and where each is, under its name's first part."""
        found: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
        for place, _, names in os.walk(self.folder):
            folder = os.path.relpath(place, self.folder)
            for name in names:
                with contextlib.suppress(OSError):
                    status = os.stat(path := os.path.join(place, name))
                    found[folder].append((status.st_mtime, status.st_size, path))
        return found
