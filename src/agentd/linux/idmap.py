"""User namespaces that only translate owners, for idmapped mounts (Linux 5.12)."""

import ctypes
import errno
import mmap
import os

from agentd.linux import abi, mounts
from agentd.linux.kernel import KERNEL

# The child runs no Python: it shares our memory, has a stack of its own, and calls _exit at once.
_libc = ctypes.CDLL(None, use_errno=True)
_clone = _libc.clone
_clone.restype = ctypes.c_int
_EXIT = ctypes.cast(_libc._exit, ctypes.c_void_p)
_STACK_BYTES = 16 << 10
_TRIAL_ID = 1
# The file system has none; it is another user namespace's, or the mount has a map already.
_NO_IDMAP = (errno.EINVAL, errno.EPERM)
# wait(2): children that end without a signal, as this one does, too.
_WALL = 0x40000000


def userns_fd(
    inside_uid: int, outside_uid: int, inside_gid: int, outside_gid: int, count: int = 1
) -> int:
    """A user namespace's descriptor, for MOUNT_ATTR_IDMAP: the caller's to close.

    On a mount with it, files of ``inside_uid`` on disk belong to ``outside_uid``, what that one
    makes is stored as ``inside_uid``'s, and ``count`` ids on from there likewise; no other owner
    can be reached. The mount keeps the map. Needs root. Raises OSError.
    """
    pid = _ended_child()
    try:
        # It is a zombie until we wait for it, and a zombie still has its namespace.
        KERNEL.write(f"/proc/{pid}/uid_map", f"{inside_uid} {outside_uid} {count}")
        KERNEL.write(f"/proc/{pid}/gid_map", f"{inside_gid} {outside_gid} {count}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.waitpid(pid, _WALL)


def works(source: int) -> bool:
    """Whether an idmapped mount of what ``source`` is open on can be had, by trying one."""
    userns = userns_fd(0, _TRIAL_ID, 0, _TRIAL_ID)
    try:
        os.close(mounts.clone_tree(source, readonly=True, idmap_fd=userns))
    except OSError as error:
        if error.errno not in _NO_IDMAP:
            raise
        return False
    finally:
        os.close(userns)
    return True


def _ended_child() -> int:
    """A child of ours in a user namespace of its own, that runs no longer, or does so soon.

    Thread-safe, 40 microseconds; a fork would copy our page tables, an interpreter take 13 ms.
    """
    with mmap.mmap(-1, _STACK_BYTES) as stack:
        top = ctypes.c_char.from_buffer(stack)
        try:
            end = ctypes.c_void_p(ctypes.addressof(top) + _STACK_BYTES)
            # No signal at its end: nobody but us waits for it.
            pid = int(_clone(_EXIT, end, abi.CLONE_NEWUSER | abi.CLONE_VM, None))
            code = ctypes.get_errno()
            if pid > 0:  # it needs its stack until then
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | _WALL)
        finally:
            del top
    if pid < 0:
        raise OSError(code, f"no user namespace for idmapped mounts: {os.strerror(code)}")
    return pid
