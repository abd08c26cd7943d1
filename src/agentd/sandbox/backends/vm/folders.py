"""Run folders: where a keeper's sockets are. One whose keeper died is removed by the next process.

A folder's ``lock`` is held by flock(2) for as long as its owner, or its owner's guard, lives: the
kernel gives it up, whatever kills them.
"""

import contextlib
import fcntl
import os
import stat
import time

from agentd.linux import runtime_dir

_PREFIX = "vm-"
_LOCK = "lock"
# sun_path of unix(7) holds 108 bytes; what follows the base is shorter than 40.
_MAX_BASE = 60
# Between mkdir and flock a folder looks dead.
_YOUNG_SECONDS = 60.0


class FolderError(Exception):
    """There is no place for run folders; the text says why."""


def base() -> str:
    """Returns the directory of this user's run folders, made if need be. Raises FolderError."""
    path = _base_path()
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o711)
        status = os.lstat(path)
    except OSError as error:
        raise FolderError(f"cannot make {path}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise FolderError(f"{path} belongs to another: remove it")
    if status.st_mode & 0o022:
        raise FolderError(f"{path} can be written by others: chmod 711 {path}")
    return path


def _base_path() -> str:
    uid = os.geteuid()
    if uid == 0 and os.access("/run", os.W_OK):
        return "/run/agentd"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and _is_usable(runtime, uid):
        return os.path.join(runtime, "agentd")
    own = os.environ.get("TMPDIR", "")
    if os.path.isabs(own) and _is_usable(own, uid) and not os.access("/tmp", os.W_OK | os.X_OK):
        return os.path.join(own, f"agentd-{uid}")
    return f"/tmp/agentd-{uid}"


def _is_usable(folder: str, uid: int) -> bool:
    """Return whether run folders may lie there: nobody else can put others in their place."""
    fits = len(folder) <= _MAX_BASE and os.access(folder, os.W_OK | os.X_OK)
    return fits and runtime_dir.is_trusted(folder, uid)


def claim() -> tuple[str, int]:
    """Makes a folder, and opens its lock, which the caller passes to whoever it is for.

    Removes dead ones first. Raises FolderError and OSError.
    """
    parent = base()
    reap(parent)
    path = os.path.join(parent, _PREFIX + os.urandom(6).hex())
    os.mkdir(path, 0o700)
    lock = os.open(f"{path}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return path, lock


def reap(parent: str) -> None:
    """Remove the folders whose owners have died; never raises."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            path = os.path.join(parent, name)
            if name.startswith(_PREFIX) and _is_dead(path):
                remove(path)


def _is_dead(path: str) -> bool:
    try:
        lock = os.open(f"{path}/{_LOCK}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        with contextlib.suppress(OSError):
            return os.lstat(path).st_mtime < time.time() - _YOUNG_SECONDS
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def remove(path: str) -> None:
    """Removes a folder and the files in it, which has no folders; never raises."""
    with contextlib.suppress(OSError):
        for name in os.listdir(path):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(path, name))
        os.rmdir(path)
