"""User namespaces that only translate owners, for idmapped mounts (Linux 5.12)."""

import os
import subprocess
import sys
import threading

from agentd.linux import abi

# Enters a user namespace, says so with a byte, and lives until its standard input ends.
_HOLDER = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare({abi.CLONE_NEWUSER}):
    os._exit(ctypes.get_errno())
os.write(1, b"x")
os.read(0, 1)
"""
_START_SECONDS = 20.0
_MAX_CACHED = 256

Mapping = tuple[int, int, int, int, int]
_cache: dict[Mapping, int] = {}
_lock = threading.Lock()


def userns_fd(
    inside_uid: int, outside_uid: int, inside_gid: int, outside_gid: int, count: int = 1
) -> int:
    """A user namespace's descriptor, for MOUNT_ATTR_IDMAP: stays this module's, do not close it.

    On a mount with it, files of ``inside_uid`` on disk belong to ``outside_uid``, what that one
    makes is stored as ``inside_uid``'s, and ``count`` ids on from there likewise; no other owner
    can be reached. Needs root. Raises OSError.
    """
    mapping = (inside_uid, outside_uid, inside_gid, outside_gid, count)
    with _lock:
        if mapping not in _cache:
            while len(_cache) >= _MAX_CACHED:
                os.close(_cache.pop(next(iter(_cache))))
            _cache[mapping] = _make(mapping)
        return _cache[mapping]


def close_all() -> None:
    """Close the cached descriptors; mounts made with them keep their maps."""
    with _lock:
        while _cache:
            os.close(_cache.popitem()[1])


def _make(mapping: Mapping) -> int:
    inside_uid, outside_uid, inside_gid, outside_gid, count = mapping
    holder = subprocess.Popen(
        [sys.executable, "-I", "-S", "-E", "-c", _HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
    )
    try:
        _await(holder)
        _write(f"/proc/{holder.pid}/uid_map", f"{inside_uid} {outside_uid} {count}")
        _write(f"/proc/{holder.pid}/gid_map", f"{inside_gid} {outside_gid} {count}")
        return os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        holder.kill()
        holder.communicate()


def _await(holder: "subprocess.Popen[bytes]") -> None:
    assert holder.stdout is not None  # noqa: S101  (it was asked for)
    watchdog = threading.Timer(_START_SECONDS, holder.kill)
    watchdog.start()
    try:
        ready = holder.stdout.read(1)
    finally:
        watchdog.cancel()
        watchdog.join()
    if not ready:
        code = holder.wait()
        why = os.strerror(code) if code > 0 else f"signal {-code}"
        raise OSError(max(code, 1), f"no user namespace for idmapped mounts: {why}")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(fd)
