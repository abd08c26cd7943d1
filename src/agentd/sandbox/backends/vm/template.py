"""Snapshots of freshly booted machines, kept so that a sandbox is restored and not booted.

    FOLDER/NAME-DIGEST.state    the state; the digest is of its content
    FOLDER/NAME-DIGEST.state.stamp    what the file looked like when it was last hashed
    FOLDER/.lock                held by the one that builds or removes

NAME is made of all that a state depends on. A state appears by rename, whole or not at all.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator

from agentd.linux import locks
from agentd.model.errors import SandboxError
from agentd.model.system import os_errors_as
from agentd.sandbox.backends.vm import states

MAX_KEPT = 4
_LOCK_SECONDS = 300.0
#: The end of the names of files that nobody relies on.
PARTIAL = ".partial"
_STATE, _STAMP = ".state", ".stamp"
_FILE = re.compile(r"([0-9a-f]{24})-([0-9a-f]{64})\.state")


class Templates:
    """Thread-safe."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = os.path.abspath(folder or default_folder())
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}

    def get(self, key: str, build: Callable[[int], None]) -> int:
        """Returns the verified state of ``key``, open for reading, the caller's to close.

        ``build`` writes a missing one. Raises what that raises, and SandboxError where the folder
        cannot be trusted.
        """
        name = hashlib.sha256(key.encode()).hexdigest()[:24]
        with self._lock:
            if name not in self._open:
                self._make_folder()
                fd = self._find(name)
                if fd is None:
                    with self._locked():
                        fd = self._find(name)  # another process may have built it meanwhile
                        if fd is None:
                            fd = self._build(name, build)
                            self._prune(name)
                while len(self._open) >= MAX_KEPT:
                    os.close(self._open.pop(next(iter(self._open))))
                self._open[name] = fd
            return os.dup(self._open[name])

    def drop(self, key: str) -> None:
        """Forget a state that turned out to be of no use, here and on disk."""
        name = hashlib.sha256(key.encode()).hexdigest()[:24]
        with self._lock, self._locked():
            fd = self._open.pop(name, None)
            if fd is not None:
                os.close(fd)
            for path in self._paths(name):
                _remove(path)

    def clear(self) -> None:
        """Remove all of them from disk; machines that are being restored keep what they have."""
        if not os.path.isdir(self.folder):
            return
        with self._lock, self._locked():
            for entry in os.listdir(self.folder):
                if _FILE.fullmatch(entry):
                    _remove(f"{self.folder}/{entry}")

    def close(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])

    def _find(self, name: str) -> int | None:
        for path in self._paths(name):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                if _is_sound(fd, path):
                    _touch(path)
                    return fd
                os.close(fd)
        return None

    def _build(self, name: str, build: Callable[[int], None]) -> int:
        partial = f"{self.folder}/{name}{PARTIAL}"
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            build(fd)
            path = f"{self.folder}/{name}-{states.digest(fd)}{_STATE}"
            os.rename(partial, path)
            _write_stamp(fd, path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
        return fd

    def _prune(self, newest: str) -> None:
        """Under the lock: what a killed builder left, corrupt states, and the oldest ones."""
        ages = []
        for entry in os.listdir(self.folder):
            path = f"{self.folder}/{entry}"
            match = _FILE.fullmatch(entry)
            if match and match[1] != newest:
                with contextlib.suppress(OSError):
                    ages.append((_used(path), path))
            elif entry.endswith(PARTIAL):
                with contextlib.suppress(OSError):
                    os.unlink(path)
        for _, path in sorted(ages)[: -(MAX_KEPT - 1)]:
            _remove(path)

    def _paths(self, name: str) -> list[str]:
        found = [_FILE.fullmatch(entry) for entry in os.listdir(self.folder)]
        return [f"{self.folder}/{match[0]}" for match in found if match and match[1] == name]

    def _make_folder(self) -> None:
        with os_errors_as(
            SandboxError, f"cannot make {self.folder}", "set XDG_CACHE_HOME to a directory of yours"
        ):
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            status = os.lstat(self.folder)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise SandboxError(
                f"{self.folder} can be written by others",
                remediation=f"chown it to yourself and chmod 700 {self.folder}",
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = f"{self.folder}/.lock"
        try:
            lock = locks.take_within(path, _LOCK_SECONDS)
        except BlockingIOError:
            raise SandboxError(f"another process has held {path} for {_LOCK_SECONDS:g} s") from None
        with locks.HeldLock(lock):
            yield


def default_folder() -> str:
    """Beside the images."""
    from agentd.image import store

    return os.path.join(os.path.dirname(store.default_folder()), "templates")


def _is_sound(fd: int, path: str) -> bool:
    """Return whether the content has the digest in its name; hashed only if the file changed."""
    now = states.stamp(fd)
    with contextlib.suppress(OSError, ValueError), open(path + _STAMP, "rb") as file:
        if json.loads(file.read(1024)) == now:
            return True
    match = _FILE.fullmatch(os.path.basename(path))
    if match is None or states.digest(fd) != match[2]:
        return False
    _write_stamp(fd, path)
    return True


def _write_stamp(fd: int, path: str) -> None:
    with contextlib.suppress(OSError):
        partial = f"{path}{_STAMP}{PARTIAL}"
        with open(partial, "w", encoding="ascii") as file:
            json.dump(states.stamp(fd), file)
        os.rename(partial, path + _STAMP)


def _touch(path: str) -> None:
    """The stamp's time says when a state was last used; the state's own is part of the stamp."""
    with contextlib.suppress(OSError):
        os.utime(path + _STAMP)


def _used(path: str) -> float:
    try:
        return os.stat(path + _STAMP).st_mtime
    except OSError:
        return 0.0


def _remove(path: str) -> None:
    for found in (path, path + _STAMP):
        with contextlib.suppress(OSError):
            os.unlink(found)
