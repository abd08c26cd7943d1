"""User namespaces that only translate owners, for idmapped mounts (Linux 5.12)."""

import ctypes
import errno
import mmap
import os
import signal

from agentd.linux import abi, mounts
from agentd.linux.kernel import KERNEL

# The child runs no Python: it shares our memory, has a stack of its own, and calls _exit at once.
_libc = ctypes.CDLL(None, use_errno=True)
_clone = _libc.clone
_clone.restype = ctypes.c_int
_EXIT = ctypes.cast(_libc._exit, ctypes.c_void_p)
_PAUSE = ctypes.cast(_libc.pause, ctypes.c_void_p)
_STACK_BYTES = 16 << 10
_TRIAL_ID = 1
_MOST_LINES = 100  # the kernel takes less than a page of text, and 340 lines
# The file system has none; it is another user namespace's, or the mount has a map already.
_NO_IDMAP = (errno.EINVAL, errno.EPERM)
# wait(2): children that end without a signal, as this one does, too.
_WALL = 0x40000000


def userns_fd(
    uid: int, gid: int, lent_to: int, spare: range = range(0), *, its_ids: int = 1
) -> int:
    """Returns a user namespace's descriptor, for MOUNT_ATTR_IDMAP: the caller's to close.

    On a mount with it, files of ``uid`` on disk belong to ``lent_to``, what that one makes is
    stored as ``uid``'s, and no other owner can be reached. The group ``gid`` is ``lent_to``'s
    likewise. Other groups are mapped too, since the kernel lets nobody write a file of which it
    cannot tell owner and group; they lead nowhere, for no process is in one. The first of them
    become ``spare``, ids that no process has; those above stay what they are, and those that
    processes of ``lent_to``'s may have, ``its_ids`` from it on, are left out. The mount keeps the
    map. Needs root. Raises OSError.
    """
    known = known_ids("/proc/self/gid_map")
    lines = group_lines(gid, lent_to, spare, known, its_ids)[:_MOST_LINES]
    groups = "".join(f"{a} {b} {n}\n" for a, b, n in lines)
    return namespace(f"{uid} {lent_to} 1", groups)


def namespace(uid_map: str, gid_map: str) -> int:
    """Returns a user namespace's descriptor, the caller's to close, with maps as the kernel takes
    them: for MOUNT_ATTR_IDMAP an id on disk, an id here, how many. Needs the machine's root. Raises
    OSError."""
    pid = _ended_child()
    try:
        # It is a zombie until we wait for it, and a zombie still has its namespace.
        KERNEL.write(f"/proc/{pid}/uid_map", uid_map)
        KERNEL.write(f"/proc/{pid}/gid_map", gid_map)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.waitpid(pid, _WALL)


def nested_namespace(uid_map: str, gid_map: str) -> int:
    """Does as ``namespace`` for root of a user namespace, whom the kernel lets write no zombie's
    maps. It takes a process that is dumpable, and PID 1 of its namespace: the child that waits ends
    with it."""
    with mmap.mmap(-1, _STACK_BYTES) as stack:
        pid = _child(stack, _PAUSE)
        try:
            KERNEL.write(f"/proc/{pid}/uid_map", uid_map)
            KERNEL.write(f"/proc/{pid}/gid_map", gid_map)
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, _WALL)


def known_ids(path: str) -> list[range]:
    """Returns those that a map of this process's user namespace has. Raises OSError."""
    with open(path, encoding="ascii") as file:
        lines = [[int(word) for word in line.split()] for line in file]
    return [range(first, first + count) for first, _, count in lines]


def group_lines(
    gid: int, lent_to: int, spare: range, known: list[range], its_ids: int = 1
) -> list[tuple[int, int, int]]:
    """Returns a gid_map, ``(on disk, outside, count)`` a line: each group once, if ``known``."""
    lines = [(gid, lent_to, 1)]
    if spare and not any(spare.start in ids and spare.stop - 1 in ids for ids in known):
        spare = range(0)
    for ids in _less(range(len(spare)), range(gid, gid + 1)):
        lines.append((ids.start, spare.start + ids.start, len(ids)))
    taken = (range(len(spare)), spare, range(gid, gid + 1), range(lent_to, lent_to + its_ids))
    for each in known:
        parts = [each]
        for out in taken:
            parts = [part for whole in parts for part in _less(whole, out)]
        lines += [(part.start, part.start, len(part)) for part in parts]
    return lines


def _less(whole: range, out: range) -> list[range]:
    """Return what is left of ``whole`` without ``out``."""
    if not out or out.stop <= whole.start or whole.stop <= out.start:
        return [whole] if whole else []
    parts = (range(whole.start, out.start), range(out.stop, whole.stop))
    return [part for part in parts if part]


def works(source: int) -> bool:
    """Return whether an idmapped mount of what ``source`` is open on can be had, by trying one."""
    userns = userns_fd(0, 0, _TRIAL_ID)
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
        pid = _child(stack, _EXIT)
        # It needs its stack until then.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | _WALL)
    return pid


def _child(stack: mmap.mmap, runs: ctypes.c_void_p) -> int:
    """A child in a user namespace of its own, that runs one function of the C library's."""
    top = ctypes.c_char.from_buffer(stack)
    try:
        end = ctypes.c_void_p(ctypes.addressof(top) + _STACK_BYTES)
        # No signal at its end: nobody but us waits for it.
        pid = int(_clone(runs, end, abi.CLONE_NEWUSER | abi.CLONE_VM, None))
        code = ctypes.get_errno()
    finally:
        del top
    if pid < 0:
        raise OSError(code, f"no user namespace for idmapped mounts: {os.strerror(code)}")
    return pid
