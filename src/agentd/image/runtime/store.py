"""Runtimes on disk: made once for each interpreter and each version of the agent.

FOLDER/DIGEST/            a runtime (``parts``); locked shared by each process that uses it
FOLDER/DIGEST.json        its files' digests (``_Made``)
FOLDER/of-WHOM.json       which runtime an interpreter's files and the agent's make (``_Known``)
FOLDER/.new-*, .old-*     of one that is being made, or was replaced
FOLDER/.lock              held by the one that makes or removes

What is there is hashed before it is used, unless its inodes are still those that were hashed last.
"""

import contextlib
import fcntl
import json
import os
import py_compile
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from agentd.image import cache, digest
from agentd.image.runtime.making import Stamps, check, fill, identify, stamp
from agentd.image.runtime.parts import LOADER, PYTHON, START, Inventory, inventory
from agentd.linux import locks, paths
from agentd.linux.replacing import replacing
from agentd.model.errors import Unavailable

#: Where sandboxes have it: outside of what an image has.
PLACE = "/.agentd/runtime"
AGENT = "agentd.guest.main"
# Of other interpreters and versions, the last used; those that are in use stay anyway.
_KEPT = 4
_NEW, _OLD, _LOCK = ".new-", ".old-", ".lock"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class AgentRuntime(locks.HeldLock):
    """An interpreter with the agent, whose files do not change, and stay until it is closed.

    ``folder`` is to be mounted read-only at ``PLACE``; ``size`` is in bytes, ``version`` Python's.
    """

    def __init__(self, folder: str, digest: str, version: str, size: int, lock: int) -> None:
        """Owns the descriptor ``lock``, by which it is in use."""
        super().__init__(lock)
        self.folder = folder
        self.digest = digest
        self.version = version
        self.size = size

    def argv(self, words: Sequence[str], module: str = AGENT, place: str = PLACE) -> list[str]:
        """Return what starts ``module.main()`` with the arguments, where the folder is at
        ``place``. To be started with an empty environment: a loader reads LD_PRELOAD, and children
        inherit it."""
        loader = [f"{place}/{LOADER}", "--inhibit-cache", "--library-path", f"{place}/lib"]
        return [*loader, f"{place}/{PYTHON}", "-I", "-S", "-E", f"{place}/{START}c", module, *words]


@dataclass(frozen=True)
class _Made:
    """``DIGEST.json``: of each file the SHA-256, and the stamp when it was hashed last."""

    version: str
    size: int
    files: dict[str, str]
    stamps: Stamps


@dataclass(frozen=True)
class _Known:
    """``of-WHOM.json``: stamps of what it was made of."""

    digest: str
    stamps: Stamps


_T = TypeVar("_T", _Made, _Known)


def ensure(folder: str | None = None) -> AgentRuntime:
    """Return the runtime of this Python and this agentd, made if it is not there; the caller closes
    it.

    It takes seconds to make and milliseconds to find. Raises Unavailable: what is wrong, the fix.
    """
    folder = os.path.realpath(folder or cache.folder("runtime"))
    try:
        return _Store(folder).ensure()
    except (OSError, py_compile.PyCompileError) as error:
        raise Unavailable(
            f"the agent's own interpreter cannot be made in {folder}",
            cause=str(error),
            remediation="make room there, see that you may write there, or set XDG_CACHE_HOME",
        ) from error


class _Store:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        whom = f"{os.path.realpath(sys.executable)}\0{sys.version}\0{__file__}"
        self._whom = os.path.join(folder, f"of-{digest.of_parts({'': whom})[:16]}.json")

    def ensure(self) -> AgentRuntime:
        self._check_owner()
        known = self._known()
        if known and (found := self._find(known)):
            return found
        with self._locked():
            self._sweep()
            have = inventory()
            name, stamps = identify(have)
            found = self._find(name) or self._make(name, have)
            _write(self._whom, _Known(name, stamps))
            self._clean()
            return found

    def _known(self) -> str:
        """The digest, where nothing changed that it was made of; else an empty string."""
        found = _load(self._whom, _Known)
        if found is None:
            return ""
        try:
            same = all(stamp(path) == then for path, then in found.stamps.items())
        except OSError:
            return ""
        return found.digest if same else ""

    def _find(self, name: str) -> AgentRuntime | None:
        """The runtime, locked and verified."""
        place = os.path.join(self._folder, name)
        made = _load(f"{place}.json", _Made)
        lock = None if made is None else _hold(place)
        if made is None or lock is None:
            return None
        stamps = _verified(place, made)
        if stamps is None:
            os.close(lock)
            return None
        if stamps != made.stamps:
            with contextlib.suppress(OSError):  # it is hashed again next time
                _write(f"{place}.json", _Made(made.version, made.size, made.files, stamps))
        os.utime(lock)  # when it was used last
        return AgentRuntime(place, name, made.version, made.size, lock)

    def _make(self, name: str, have: Inventory) -> AgentRuntime:
        """Under the lock."""
        place = os.path.join(self._folder, name)
        new = tempfile.mkdtemp(prefix=_NEW, dir=self._folder)
        try:
            fill(new, have)
            check(new)
            files = {inner: digest.of_file(os.path.join(new, inner)) for inner in _walk(new)}
            size = sum(os.path.getsize(os.path.join(new, inner)) for inner in files)
            paths.sync_filesystem(new)
            os.chmod(new, cache.OPEN)
            if os.path.lexists(place):  # damaged, and maybe mounted somewhere
                os.rename(place, os.path.join(self._folder, _OLD + os.path.basename(new)))
            os.rename(new, place)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        stamps = {inner: stamp(os.path.join(place, inner)) for inner in files}
        _write(f"{place}.json", _Made(have.version, size, files, stamps))
        lock = _hold(place)
        if lock is None:
            raise FileNotFoundError(2, "it was removed meanwhile", place)
        return AgentRuntime(place, name, have.version, size, lock)

    def _sweep(self) -> None:
        """Remove what killed processes left; under the lock."""
        for entry in os.scandir(self._folder):
            if entry.name.startswith((_NEW, _OLD)):
                if entry.is_dir(follow_symlinks=False):
                    _remove_unused(entry.path)
                else:
                    os.unlink(entry.path)

    def _clean(self) -> None:
        """Remove all but the last used, and those in use; under the lock."""
        found = []
        for entry in os.scandir(self._folder):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                found.append((entry.stat().st_mtime, entry.path))
        for _, place in sorted(found, reverse=True)[_KEPT:]:
            if _remove_unused(place):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{place}.json")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        cache.make_folders(self._folder)
        self._check_owner()
        with locks.held(os.path.join(self._folder, _LOCK)):
            yield

    def _check_owner(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(self._folder)
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError(1, "others may change it", self._folder)


def _verified(place: str, made: _Made) -> Stamps | None:
    """The stamps as they are now, or None where a file is missing or changed."""
    stamps: Stamps = {}
    try:
        for inner, wanted in made.files.items():
            path = os.path.join(place, inner)
            stamps[inner] = stamp(path)
            if stamps[inner] != made.stamps.get(inner) and digest.of_file(path) != wanted:
                return None
    except OSError:
        return None
    return stamps


def _hold(place: str) -> int | None:
    """Lock it against removal. None where it is not there."""
    try:
        fd = os.open(place, _FOLDER)
    except FileNotFoundError:
        return None
    fcntl.flock(fd, fcntl.LOCK_SH)
    if _is_open_on(fd, place):
        return fd
    os.close(fd)  # removed before it was locked
    return None


def _remove_unused(place: str) -> bool:
    """False where a process uses it."""
    fd = os.open(place, _FOLDER)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        shutil.rmtree(place, ignore_errors=True)
        return True
    finally:
        os.close(fd)


def _is_open_on(fd: int, place: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(place))
    except OSError:
        return False


def _walk(top: str) -> list[str]:
    found = []
    for folder, _, names in os.walk(top):
        found += [os.path.relpath(os.path.join(folder, name), top) for name in names]
    return sorted(found)


def _load(path: str, kind: type[_T]) -> _T | None:
    """None for what is not there, or is not what we wrote."""
    try:
        with open(path, "rb") as file:
            return kind(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: str, value: "_Made | _Known") -> None:
    with replacing(path, 0o600) as file:
        file.write(json.dumps(value.__dict__).encode())
