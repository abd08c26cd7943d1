"""How much of the machine one principal may have; who is over it is told when to come back."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from agentd.daemon.config.schema import Quota, Quotas
from agentd.model.errors import QuotaExceeded
from agentd.model.limits import Limits
from agentd.model.units import readable_size
from agentd.sandbox.backends.limits import with_defaults

_WINDOW_SECONDS = 3600.0  # of cpu_seconds
# Principals whose requests are remembered. One that is forgotten begins with a full bucket.
_MAX_REMEMBERED = 10_000


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

    @property
    def idle(self) -> bool:
        return not (self.sandboxes or self.running)


class Ledger:
    """Thread-safe. What a principal holds, against its quota; in memory, for sandboxes die or are
    counted anew when the daemon starts again."""

    def __init__(
        self, quotas: Callable[[], Quotas], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._quotas = quotas
        self._clock = clock
        self._lock = threading.Lock()
        self._uses: dict[str, _Use] = {}

    def request(self, name: str) -> None:
        """One request of ``name``. Raises QuotaExceeded where they come too fast."""
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

    def take(self, name: str, limits: Limits, *, force: bool = False) -> None:
        """Room for one sandbox; ``give_back`` it. ``force`` counts what exists already."""
        quota = self._quota(name)
        memory, disk = _memory(limits), _disk(limits)
        with self._lock:
            use = self._use(name)
            if not force:
                _check(name, "sandboxes", use.sandboxes + 1, quota.sandboxes)
                _check_bytes(name, "memory", use.memory, memory, quota.memory)
                _check_bytes(name, "disk", use.disk, disk, quota.disk)
            use.sandboxes += 1
            use.memory += memory
            use.disk += disk

    def give_back(self, name: str, limits: Limits) -> None:
        with self._lock:
            use = self._use(name)
            use.sandboxes -= 1
            use.memory -= _memory(limits)
            use.disk -= _disk(limits)

    @contextlib.contextmanager
    def command(self, name: str) -> Iterator[None]:
        """While one command runs. Raises QuotaExceeded before it does."""
        quota = self._quota(name)
        with self._lock:
            use = self._use(name)
            _check(name, "commands at the same time", use.running + 1, quota.concurrency)
            self._check_cpu(name, use, quota)
            use.running += 1
        try:
            yield
        finally:
            with self._lock:
                use.running -= 1

    def used_cpu(self, name: str, seconds: float) -> None:
        with self._lock:
            self._use(name).cpu += seconds

    def sandboxes(self, name: str) -> int:
        with self._lock:
            return self._use(name).sandboxes

    def _check_cpu(self, name: str, use: _Use, quota: Quota) -> None:
        now = self._clock()
        if now - use.cpu_from >= _WINDOW_SECONDS:
            use.cpu, use.cpu_from = 0.0, now
        if quota.cpu_seconds is not None and use.cpu >= quota.cpu_seconds:
            wait = use.cpu_from + _WINDOW_SECONDS - now
            raise _exceeded(name, f"{quota.cpu_seconds:g} seconds of CPU time an hour", wait)

    def _quota(self, name: str) -> Quota:
        quotas = self._quotas()
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


def _memory(limits: Limits) -> int:
    return with_defaults(limits).memory or 0


def _disk(limits: Limits) -> int:
    return with_defaults(limits).disk or 0
