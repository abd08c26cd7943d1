"""clone3(2) from Python: a fork that is born in new namespaces.

``os.fork`` after ``unshare`` costs twice as much and leaves the parent in the new namespaces. The
interpreter's own fork hooks run around the raw call, and glibc's cached thread id is corrected by
the kernel itself (CLONE_CHILD_SETTID at the place where glibc keeps it).
"""

import ctypes
import errno
import os
import signal
import struct

from agentd.linux import abi

# PyDLL keeps the GIL held across the call, as os.fork does.
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_before = ctypes.pythonapi.PyOS_BeforeFork
_after_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_child = ctypes.pythonapi.PyOS_AfterFork_Child
for _hook in (_before, _after_parent, _after_child):
    _hook.restype = None

# struct clone_args (Linux 5.3): flags, pidfd, child_tid, parent_tid, exit_signal, stack,
# stack_size, tls; since Linux 5.7 also set_tid, set_tid_size, cgroup.
_ARGS = struct.Struct("=8Q")
_GROUP = struct.Struct("=3Q")
_TCB_BYTES = 2048


class Cloner:
    """Holds what one clone3 call needs, made ahead. Make it before entering a pid namespace."""

    def __init__(self) -> None:
        self._tid_address = _find_cached_tid()
        self._pidfd = ctypes.c_int(-1)
        self._buffer = ctypes.create_string_buffer(_ARGS.size + _GROUP.size)

    def clone(self, flags: int, group: int = -1) -> tuple[int, int]:
        """Returns ``(pid, pidfd)`` in the parent, the latter close-on-exec, ``(0, -1)`` in the
        child.

        ``group`` is the directory of a version 2 cgroup that the child is born in (Linux 5.7).
        Only from a single-threaded process. Raises OSError, EAGAIN where the group is full.
        """
        flags |= abi.CLONE_PIDFD
        size = _ARGS.size
        if group >= 0:
            flags |= abi.CLONE_INTO_CGROUP
            size += _GROUP.size
            _GROUP.pack_into(self._buffer, _ARGS.size, 0, 0, group)
        if self._tid_address:
            flags |= abi.CLONE_CHILD_SETTID
        _ARGS.pack_into(
            self._buffer, 0, flags, ctypes.addressof(self._pidfd), self._tid_address, 0,
            signal.SIGCHLD, 0, 0, 0,
        )  # fmt: skip
        _before()
        pid = int(_syscall(abi.SYS.clone3, self._buffer, size))
        code = ctypes.get_errno()
        if pid < 0 and code in (errno.ENOSYS, errno.EPERM) and group < 0:
            pid = self._clone2(flags)
            code = ctypes.get_errno()
        if pid == 0:
            _after_child()
            return 0, -1
        _after_parent()
        if pid < 0:
            raise OSError(code, os.strerror(code))
        return pid, self._pidfd.value

    def _clone2(self, flags: int) -> int:
        """clone(2), where a container's seccomp profile refuses clone3, into whose arguments it
        cannot look: as an old kernel does, or Docker before 20.10.10 (EPERM, which may mean that
        the kernel refuses the namespaces: then it says so again). Without a stack it is a fork."""
        tid, tls = self._tid_address, 0
        last = (tls, tid) if abi.MACHINE == "aarch64" else (tid, tls)
        words = (flags | signal.SIGCHLD, 0, ctypes.addressof(self._pidfd), *last)
        return int(_syscall(abi.SYS.clone, *(ctypes.c_long(word) for word in words)))


def _find_cached_tid() -> int:
    """Address of the thread id in glibc's thread descriptor, or 0 where it is not found.

    glibc and musl both keep it there; a stale one would break raise(3) and robust mutexes.
    """
    pthread_self = _libc.pthread_self
    pthread_self.restype = ctypes.c_void_p
    base = int(pthread_self())
    tid = int(_syscall(abi.SYS.gettid))
    words = (ctypes.c_int * (_TCB_BYTES // 4)).from_address(base)
    found = [i for i, word in enumerate(words) if word == tid]
    return base + 4 * found[0] if len(found) == 1 else 0
