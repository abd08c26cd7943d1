"""How much of the machine one principal may have; who is over it is told when to come back."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from agentd.daemon.config.schema import Quota, Quotas
from agentd.model import context
from agentd.model.errors import Full, QuotaExceeded
from agentd.model.holds import has_share
from agentd.model.limits import Limits
from agentd.model.units import counted, readable_size
from agentd.sandbox.backends.limits import with_defaults

_WINDOW_SECONDS = 3600.0  # of cpu_seconds
# Principals whose requests are remembered. One that is forgotten begins with a full bucket.
_MAX_REMEMBERED = 10_000
# Requests that wait for room, each in a thread of its own: of one principal, and of all.
MAX_WAITING_OF_ONE = 128
MAX_WAITING = 512
# How often who waits looks at a quota that a new configuration may have raised.
_LOOK_SECONDS = 1.0


class _Turn:
    """A request that waits for room. ``told`` is set when it has it, or there is no more to wait
    for."""

    def __init__(self, memory: int, disk: int) -> None:
        self.memory = memory
        self.disk = disk
        self.granted = False
        self.told = threading.Event()


class _Use:
    def __init__(self, now: float) -> None:
        self.sandboxes = 0
        self.memory = 0
        self.disk = 0
        self.running = 0
        self.tokens = float("inf")  # until the first request tells how large the bucket is
        self.counted_at = now
        self.cpu = 0.0
        self.cpu_from = now
        self.turns: deque[_Turn] = deque()  # that wait, the first first

    @property
    def idle(self) -> bool:
        return not (self.sandboxes or self.running or self.turns)

    def check(self, name: str, turn: _Turn, quota: Quota) -> None:
        """Raises QuotaExceeded where there is no room for it."""
        _check(name, "sandboxes", self.sandboxes + 1, quota.sandboxes)
        _check_bytes(name, "memory", self.memory, turn.memory, quota.memory)
        _check_bytes(name, "disk", self.disk, turn.disk, quota.disk)

    def add(self, turn: _Turn) -> None:
        self.sandboxes += 1
        self.memory += turn.memory
        self.disk += turn.disk


class Ledger:
    """Counts what a principal holds, against its quota. Thread-safe; in memory, for sandboxes die
    or are counted anew when the daemon starts again."""

    def __init__(self, quotas: Quotas, clock: Callable[[], float] = time.monotonic) -> None:
        self.quotas = quotas  # a new configuration sets them
        self._clock = clock
        self._lock = threading.Lock()
        self._uses: dict[str, _Use] = {}
        self._waiting = 0
        self._closed = False

    def request(self, name: str) -> None:
        """Count one request of ``name``. Raises QuotaExceeded where they come too fast."""
        quota = self._quota(name)
        if quota.requests is None:
            return
        with self._lock:
            use, now = self._use(name), self._clock()
            most = float(quota.burst or max(1.0, quota.requests))
            refilled = use.tokens + (now - use.counted_at) * quota.requests
            use.tokens, use.counted_at = min(most, refilled), now
            if use.tokens < 1:
                wait = (1 - use.tokens) / quota.requests
                raise _exceeded(name, f"{quota.requests:g} requests a second", wait)
            use.tokens -= 1

    def take(self, name: str, limits: Limits, *, force: bool = False, wait: float = 0.0) -> None:
        """Take room for one sandbox; ``give_back`` it. ``force`` counts what exists already.

        Where there is none it is waited for, up to ``wait`` seconds, and those of one principal get
        it in the order in which they asked. Raises QuotaExceeded, Full.
        """
        quota = self._quota(name)
        turn = _Turn(_memory(limits), _disk(limits))
        with self._lock:
            use = self._use(name)
            if force:
                use.add(turn)
                return
            try:
                if use.turns and wait <= 0:
                    before = counted(len(use.turns), "request waits", "requests wait")
                    raise _exceeded(name, f"what {before} for already", 1.0)
                if not use.turns:
                    use.check(name, turn, quota)
                    use.add(turn)
                    return
            except QuotaExceeded:
                if wait <= 0:
                    raise
            _Use(0.0).check(name, turn, quota)  # what never fits is not waited for
            self._line_up(name, use, turn)
        try:
            self._await(name, turn, wait)
        except BaseException:
            self._give_up(name, limits, turn)
            raise
        finally:
            with self._lock:
                self._waiting -= 1

    def give_back(self, name: str, limits: Limits) -> None:
        with self._lock:
            use = self._use(name)
            use.sandboxes -= 1
            use.memory -= _memory(limits)
            use.disk -= _disk(limits)
            self._grant(name, use)

    @property
    def waiting(self) -> int:
        """How many wait for room."""
        with self._lock:
            return self._waiting

    def close(self) -> None:
        """Let nobody wait any more, and tell those who do."""
        with self._lock:
            self._closed = True
            for use in self._uses.values():
                for turn in use.turns:
                    turn.told.set()

    def _line_up(self, name: str, use: _Use, turn: _Turn) -> None:
        if self._closed:
            raise about_to_end()
        own = len(use.turns)
        if own >= MAX_WAITING_OF_ONE or not has_share(own, self._waiting - own, MAX_WAITING):
            raise Full(
                f"{self._waiting} requests wait for room, {len(use.turns)} of them {name}'s",
                cause=f"{MAX_WAITING_OF_ONE} of one principal may, and {MAX_WAITING} of all, of one"
                " no more than are left to others",
                remediation="come back later",
                retry_after=5.0,
            )
        use.turns.append(turn)
        self._waiting += 1

    def _await(self, name: str, turn: _Turn, wait: float) -> None:
        """Returns once it has room."""
        end = time.monotonic() + wait
        gone = context.waiting_client()
        with gone.telling(turn.told.set):
            while (left := end - time.monotonic()) > 0:
                if turn.told.wait(min(left, _LOOK_SECONDS)) or self._closed:
                    break
                with self._lock:
                    self._grant(name, self._use(name))
        if gone.is_set:
            raise QuotaExceeded("whoever asked has gone before there was room", retry_after=1.0)
        if turn.granted:
            return
        if self._closed:
            raise about_to_end()
        raise QuotaExceeded(
            f"{name} has no room for another sandbox",
            cause=f"it was waited for {wait:g} s",
            remediation="end what is not needed, or wait longer",
            retry_after=1.0,
        )

    def _give_up(self, name: str, limits: Limits, turn: _Turn) -> None:
        """Give back what it got meanwhile and cannot use."""
        with self._lock:
            use = self._use(name)
            if turn in use.turns:
                use.turns.remove(turn)
                self._grant(name, use)
        if turn.granted:
            self.give_back(name, limits)

    def _grant(self, name: str, use: _Use) -> None:
        """Give what room there is to those who wait, in their order; under the lock."""
        if not use.turns:
            return
        quota = self._quota(name)
        while use.turns and not self._closed:
            turn = use.turns[0]
            if not _fits(name, _Use(0.0), turn, quota):  # in a quota that has become smaller
                use.turns.popleft().told.set()
            elif _fits(name, use, turn, quota):
                use.add(use.turns.popleft())
                turn.granted = True
                turn.told.set()
            else:
                return

    @contextlib.contextmanager
    def command(self, name: str, *, force: bool = False) -> Iterator[None]:
        """Count one command within the block; ``force`` counts what runs already. Raises
        QuotaExceeded before that begins."""
        quota = self._quota(name)
        with self._lock:
            use = self._use(name)
            if not force:
                _check(name, "commands at the same time", use.running + 1, quota.concurrency)
                now = self._clock()
                if now - use.cpu_from >= _WINDOW_SECONDS:
                    use.cpu, use.cpu_from = 0.0, now
                if quota.cpu_seconds is not None and use.cpu >= quota.cpu_seconds:
                    wait = use.cpu_from + _WINDOW_SECONDS - now
                    most = f"{quota.cpu_seconds:g} seconds of CPU time an hour"
                    raise _exceeded(name, most, wait)
            use.running += 1
        try:
            yield
        finally:
            with self._lock:
                use.running -= 1

    def used_cpu(self, name: str, seconds: float) -> None:
        with self._lock:
            self._use(name).cpu += seconds

    def _quota(self, name: str) -> Quota:
        quotas = self.quotas
        return quotas.principals.get(name, quotas.default)

    def _use(self, name: str) -> _Use:
        use = self._uses.get(name)
        if use is None:
            if len(self._uses) >= _MAX_REMEMBERED:
                self._uses = {n: u for n, u in self._uses.items() if not u.idle}
            use = self._uses[name] = _Use(self._clock())
        return use


def _check(name: str, what: str, wanted: float, most: float | None) -> None:
    if most is not None and wanted > most:
        raise _exceeded(name, f"{most:g} {what}", 1.0)


def _check_bytes(name: str, what: str, held: int, wanted: int, most: int | None) -> None:
    if most is not None and held + wanted > most:
        bound, more = readable_size(most), readable_size(wanted)
        raise QuotaExceeded(
            f"{name} may have {bound} of {what}: has {readable_size(held)}, and asks for {more}",
            remediation="end what is not needed, or ask for less",
            retry_after=1.0,
        )


def _exceeded(name: str, bound: str, wait: float) -> QuotaExceeded:
    return QuotaExceeded(
        f"{name} may have {bound}, and has them",
        remediation="end what is not needed, or come back later",
        retry_after=max(wait, 0.01),
    )


def _fits(name: str, use: _Use, turn: _Turn, quota: Quota) -> bool:
    try:
        use.check(name, turn, quota)
    except QuotaExceeded:
        return False
    return True


def about_to_end() -> Full:
    """Make the refusal of a daemon that takes no new sandboxes any more."""
    return Full(
        "the daemon is about to end",
        remediation="come back when it has been started again",
        retry_after=5.0,
    )


def _memory(limits: Limits) -> int:
    return with_defaults(limits).memory or 0


def _disk(limits: Limits) -> int:
    return with_defaults(limits).disk or 0
