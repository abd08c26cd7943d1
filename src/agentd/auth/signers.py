"""The trusted signers: a directory of public keys, one file each.

``alice.pem`` is an Ed25519 public key, and ``alice`` the principal that it acts as. ``alice.toml``
beside it may say otherwise: ``principal``, ``scopes``, ``expires`` (a TOML time with its offset).
What is taken out of the directory is trusted no longer, at once.
"""

import os
import re
import stat
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Annotated

import msgspec

from agentd.auth.keyfiles import MAX_BYTES, key_id, read_public
from agentd.auth.signing import Signer
from agentd.model import typed
from agentd.model.principal import ORDINARY, SCOPES
from agentd.model.system import scarce

MAX_SIGNERS = 1000
POLL_SECONDS = 1.0
USUAL_SCOPES = frozenset(ORDINARY)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_PRINCIPAL = re.compile(r"[A-Za-z0-9][!-~]{0,255}")

Seen = tuple[tuple[object, ...], ...]


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    principal: str | None = None
    scopes: tuple[str, ...] | None = None
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class Signers:
    """Thread-safe. ``problems`` says what is in the directory and is not trusted, and why: a key
    counts in full or not at all."""

    def __init__(self, folder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.problems: tuple[str, ...] = ()
        self._clock = clock
        self._lock = threading.Lock()
        self._signers: dict[str, Signer] = {}
        self._seen: Seen | None = None
        self._files: dict[str, tuple[object, ...]] = {}
        self._looked = 0.0
        self.reload()

    def find(self, key: str) -> Signer | None:
        with self._lock:
            if self._clock() - self._looked >= POLL_SECONDS:
                self._look()
            found = self._signers.get(key)
            if found is not None and not self._is_as_seen(found.name):
                self._look()
                found = self._signers.get(key)
            return found

    def all(self) -> list[Signer]:
        with self._lock:
            return sorted(self._signers.values(), key=lambda signer: signer.name)

    def reload(self) -> None:
        """Read it all again."""
        with self._lock:
            self._seen = None
            self._look()

    def _look(self) -> None:
        self._looked = self._clock()
        try:
            seen = _look_at(self.folder)
            if seen != self._seen:
                self._signers, self.problems = _load(self.folder)
                self._seen, self._files = seen, {str(file[0]): file for file in seen}
        except (OSError, ValueError) as error:
            # Not those of before: it may have been taken away to end the trust in them.
            self._signers, self._seen = {}, None
            self.problems = (f"{self.folder}: {_words(error)}",)

    def _is_as_seen(self, name: str) -> bool:
        """Return whether the one signer's files are those that were read; the others wait for the
        poll."""
        files = (f"{name}.pem", f"{name}.toml")
        return all(_look_at_file(self.folder, file) == self._files.get(file) for file in files)


def _look_at(folder: str) -> Seen:
    """Different when anything in it is. Raises OSError, ValueError where it is too large."""
    place = os.stat(folder)
    names = _names(folder)
    files = [_look_at_file(folder, name) for name in names]
    head = (".", place.st_ino, place.st_ctime_ns, place.st_mode, place.st_uid)
    return (head, *(file for file in files if file is not None))


def _look_at_file(folder: str, name: str) -> tuple[object, ...] | None:
    try:
        found = os.lstat(os.path.join(folder, name))
    except FileNotFoundError:
        return None
    return (name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _names(folder: str) -> list[str]:
    found: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith((".pem", ".toml")):
                found.append(entry.name)
            if len(found) > 2 * MAX_SIGNERS:
                raise ValueError(f"it has more than {MAX_SIGNERS} signers")
    return sorted(found)


def _load(folder: str) -> tuple[dict[str, Signer], tuple[str, ...]]:
    """Return the signers by their keys' ids, and what is wrong. Raises OSError, ValueError."""
    for path in _ways(folder):
        _check_owner(os.lstat(path), path)
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_owner(os.fstat(place), folder, sticky=False)
        return _load_all(place, set(_names(folder)))
    finally:
        os.close(place)


def _load_all(place: int, names: set[str]) -> tuple[dict[str, Signer], tuple[str, ...]]:
    found: dict[str, Signer] = {}
    twice: set[str] = set()
    problems = [
        f"{name}: there is no {name.removesuffix('.toml')}.pem"
        for name in sorted(names)
        if name.endswith(".toml") and f"{name.removesuffix('.toml')}.pem" not in names
    ]
    for name in sorted(names):
        if not name.endswith(".pem"):
            continue
        try:
            signer = _signer(place, name.removesuffix(".pem"), names)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and scarce(error):
                raise  # no matter of the file's: all of it is read again
            problems.append(f"{name}: {_words(error)}")
            continue
        if signer.key_id in found:
            # Whoever removes one of them would believe that the key is trusted no longer.
            problems.append(f"{name}: {found[signer.key_id].name}.pem is the same key")
            twice.add(signer.key_id)
        found[signer.key_id] = signer
    return {key: signer for key, signer in found.items() if key not in twice}, tuple(problems)


def _signer(place: int, name: str, names: set[str]) -> Signer:
    if not _NAME.fullmatch(name):
        raise ValueError("a signer's name has letters, digits, dots, dashes, @ and underscores")
    key = read_public(_read(place, f"{name}.pem"))
    settings = _Settings()
    if f"{name}.toml" in names:
        settings = _settings(_read(place, f"{name}.toml"))
    scopes = USUAL_SCOPES if settings.scopes is None else frozenset(settings.scopes)
    principal = name if settings.principal is None else settings.principal
    if unknown := scopes - frozenset(SCOPES):
        raise ValueError(f"{name}.toml: unknown scope {sorted(unknown)[0][:64]!r}")
    if not _PRINCIPAL.fullmatch(principal):
        raise ValueError(f"{name}.toml: {principal[:64]!r} is no name for a principal")
    expires = None if settings.expires is None else settings.expires.timestamp()
    return Signer(
        name=name, key_id=key_id(key), key=key, principal=principal, scopes=scopes, expires=expires
    )


def _settings(data: bytes) -> _Settings:
    try:
        return typed.convert(tomllib.loads(data.decode()), _Settings)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"its .toml is wrong: {error}") from None


def _read(place: int, name: str) -> bytes:
    # Not blocking: a FIFO would wait for somebody to write into it.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=place)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no file")
        _check_owner(found, name, sticky=False)
        data = os.read(fd, MAX_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return data


def _check_owner(found: os.stat_result, path: str, *, sticky: bool = True) -> None:
    """Check that nobody but root and us can put something else there. Raises ValueError.

    ``sticky`` lets pass a directory in which everybody may replace their own files alone.
    """
    if found.st_uid not in (0, os.geteuid()):
        raise ValueError(f"{path} belongs to uid {found.st_uid}: chown it to root")
    if stat.S_ISLNK(found.st_mode):
        return  # its mode means nothing; who may replace it, its directory tells
    if found.st_mode & 0o022 and not (sticky and found.st_mode & stat.S_ISVTX):
        raise ValueError(f"others may write {path}: chmod go-w it")


def _ways(folder: str) -> Iterator[str]:
    """List all directories and links that lead to it: whoever replaces one can replace it."""
    for start in {os.path.abspath(folder), os.path.realpath(folder)}:
        path = start
        while path != "/":
            path = os.path.dirname(path)
            yield path
        if start == os.path.abspath(folder):
            yield start


def _words(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
