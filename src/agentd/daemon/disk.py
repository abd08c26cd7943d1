"""Whether the disk of the state directory takes what must be written; room to start on a full one.

A reserve lies in the state directory while there is room. A daemon that starts on a full disk gives
it up: it can then come up, end sandboxes and say what is wrong.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable

_RESERVE, _PROBE = "reserve", "probe"
_RESERVED = 8 << 20
_NEEDED = 1 << 20  # less than this is full
_LOW = 16 << 20  # from here on it is tried out
_LOOK_SECONDS = 1.0
_KEEP_SECONDS = 30.0
_SILENT_SECONDS = 15.0  # a look that takes longer is told of


class Disk:
    """Watches it; ``look`` is one thread's: a disk may not answer, and others go on. ``failures``
    counts what it refused to writers; ``missing`` says what was taken away from them, or ""."""

    def __init__(
        self, state: str, failures: Callable[[], int], missing: Callable[[], str] = str
    ) -> None:
        self._state = state
        self._failures = failures
        self._missing = missing
        self._seen = 0
        self._next = self._keep_at = 0.0
        self._looking_since = 0.0  # 0: nobody looks now
        self._trouble = ""

    @property
    def trouble(self) -> str:
        """Returns what is wrong with it; "" where nothing is known of."""
        since = self._looking_since
        seconds = time.monotonic() - since if since else 0.0
        if seconds > _SILENT_SECONDS:
            return f"the disk of {self._state} has not answered for {seconds:.0f} s"
        return self._trouble

    def look(self) -> None:
        """Look, now and then; a disk that takes what is written is not written to for this."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LOOK_SECONDS
        self._looking_since = now
        try:
            self._look(now)
        finally:
            self._looking_since = 0.0

    def _look(self, now: float) -> None:
        failures = self._failures()
        suspect = failures != self._seen or bool(self._trouble) or _free(self._state) < _LOW
        self._seen = failures
        self._trouble = self._missing() or (_tried(self._state) if suspect else "")
        if not self._trouble and now >= self._keep_at:
            self._keep_at = now + _KEEP_SECONDS
            _keep(self._state)


def make_room(state: str) -> None:
    """Give up the reserve where the disk is full; called before a daemon starts."""
    path = os.path.join(state, _RESERVE)
    if os.path.lexists(path) and _tried(state):
        with contextlib.suppress(OSError):
            os.unlink(path)


def _free(state: str) -> int:
    try:
        found = os.statvfs(state)
    except OSError:
        return 0
    blocks = found.f_bfree if os.geteuid() == 0 else found.f_bavail
    return 0 if found.f_files and not found.f_ffree else blocks * found.f_frsize


def _tried(state: str) -> str:
    """Return what the disk says to a little more; "" where it takes it."""
    try:
        _allocate(os.path.join(state, _PROBE), _NEEDED)
    except OSError as error:
        what = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot be written"
        return f"the disk of {state} {what}: {error.strerror}"
    finally:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(state, _PROBE))
    return ""


def _keep(state: str) -> None:
    path = os.path.join(state, _RESERVE)
    if not os.path.lexists(path) and _free(state) > 4 * _RESERVED:
        try:
            _allocate(path, _RESERVED)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _allocate(path: str, size: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)
