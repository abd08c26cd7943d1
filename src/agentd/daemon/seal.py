"""Answers that are kept for a repeat are sealed (AES-256-GCM) with a key that no backup has.

The key lies in the runtime directory, which is in memory: it outlives the daemon, as an answer
must, and is gone when the machine is started again. Then nobody can read what it sealed.
"""

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterator
from hashlib import sha256

_KEY_BYTES, _NONCE_BYTES = 32, 12
_IN_MEMORY = (0x01021994, 0x858458F6)  # TMPFS_MAGIC, RAMFS_MAGIC of linux/magic.h
_SUFFIX = ".seal"
_MAX_PATH = 4096


class AnswerSeal:
    """Seals and opens answers with one key. Thread-safe."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher = AESGCM(key)

    def close(self, data: bytes, about: bytes) -> bytes:
        """Seal it; ``about`` must be the same again to open it."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, about)

    def open(self, data: bytes, about: bytes) -> bytes | None:
        """Open it; None where another key sealed it, or it was changed."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], about)
        except (InvalidTag, ValueError):
            return None


def of_state(state: str) -> AnswerSeal:
    """Return the seal of a state directory, made if need be.

    Where there is no runtime directory in memory the key is this process's alone: the next daemon
    cannot open what it sealed.
    """
    for folder in _folders():
        with contextlib.suppress(OSError):
            _make(folder)
            if _is_in_memory(folder):
                _sweep(folder)
                return AnswerSeal(_load_or_create(folder, os.path.realpath(state)))
    return AnswerSeal(os.urandom(_KEY_BYTES))


def _folders() -> Iterator[str]:
    uid = os.geteuid()
    if given := os.environ.get("RUNTIME_DIRECTORY", ""):  # systemd.exec(5)
        yield given.partition(":")[0]
    if uid == 0:
        yield "/run/agentd"
    elif runtime := os.environ.get("XDG_RUNTIME_DIR", ""):
        yield os.path.join(runtime, "agentd")
    yield f"/dev/shm/agentd-{uid}"


def _make(folder: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o711)
    found = os.lstat(folder)
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or others:
        raise PermissionError(f"{folder} is not ours alone")


def _is_in_memory(folder: str) -> bool:
    buffer = ctypes.create_string_buffer(256)  # struct statfs, which begins with its f_type
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(folder), buffer):
        return False
    return ctypes.c_long.from_buffer(buffer).value in _IN_MEMORY


def _load_or_create(folder: str, state: str) -> bytes:
    """Under the lock of ``state``'s store: no other daemon makes the same one. The file has the key
    and then the path."""
    path = os.path.join(folder, sha256(os.fsencode(state)).hexdigest()[:32] + _SUFFIX)
    with contextlib.suppress(OSError):
        found = _read(path)
        if len(found) > _KEY_BYTES:
            return found[:_KEY_BYTES]
    key = os.urandom(_KEY_BYTES)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}.new")
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, key + os.fsencode(state))
    finally:
        os.close(fd)
    os.rename(f"{path}.new", path)
    return key


def _read(path: str) -> bytes:
    """Raises OSError for one that others could have read or written."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        private = found.st_uid == os.geteuid() and not found.st_mode & 0o077
        if not stat.S_ISREG(found.st_mode) or not private:
            raise PermissionError(f"{path} is not ours alone")
        return os.read(fd, _KEY_BYTES + _MAX_PATH)
    finally:
        os.close(fd)


def _sweep(folder: str) -> None:
    """Remove the keys of state directories that are gone."""
    for name in os.listdir(folder):
        if name.endswith(_SUFFIX):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                if not os.path.isdir(_read(path)[_KEY_BYTES:]):
                    os.unlink(path)
