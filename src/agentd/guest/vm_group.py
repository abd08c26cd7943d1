"""The cgroup of a virtual machine's commands: version 2, made by the agent, which stays outside.

The agent and init live in the root group, which has no limits, so that whatever the commands do
neither of the two runs out of memory or processes. Children are born in the group (spawn.py).
"""

import contextlib
import os
import select

from agentd.linux.kernel import KERNEL

ROOT = "/sys/fs/cgroup"
NAME = "sandbox"
CONTROLLERS = ("cpu", "memory", "pids")
CPU_PERIOD_USEC = 100_000
# What the kernel's own structures, init and the agent are left of the memory: a bomb must meet
# the group's limit before the machine's end.
RESERVE_BYTES = 48 << 20
_MIN_BYTES = 8 << 20
# (cause, file, field)
_HITS = (("oom", "memory.events", b"oom_kill"), ("pids_limit", "pids.events", b"max"))


class GuestGroup:
    """Owns descriptors only: the group stays, for an agent that is started again."""

    def __init__(self, root: str = ROOT) -> None:
        """Make it, or find it. Raises OSError."""
        self._path = os.path.join(root, NAME)
        shared = " ".join(f"+{name}" for name in CONTROLLERS)
        KERNEL.write(os.path.join(root, "cgroup.subtree_control"), shared)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._path)
        self._counters: list[tuple[str, int, bytes]] = []
        # Tells that a counter was raised since it was read (kernfs_notify): cheaper than to read.
        self._changed = select.poll()
        self._hits: dict[str, int] = {}
        self.fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for cause, name, field in _HITS:
                fd = os.open(os.path.join(self._path, name), os.O_RDONLY | os.O_CLOEXEC)
                self._counters.append((cause, fd, field))
                self._changed.register(fd, select.POLLPRI)
            self._hits = self._read_hits()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        fds = [self.fd, *(fd for _, fd, _ in self._counters)]
        self.fd, self._counters = -1, []
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def limit_memory(self, limit: int | None) -> int:
        """Return what holds now, in bytes: ``limit``, or less where the machine has less."""
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        most = max(total - RESERVE_BYTES, _MIN_BYTES)
        held = most if limit is None else min(limit, most)
        self._set("memory.max", str(held))
        with contextlib.suppress(FileNotFoundError):  # a kernel without swap
            self._set("memory.swap.max", "0")
        return held

    def limit_pids(self, limit: int) -> None:
        self._set("pids.max", str(limit))

    def limit_cpus(self, limit: float) -> None:
        """Sets a limit in cores; the kernel takes no quota below 1 ms."""
        self._set("cpu.max", f"{max(int(limit * CPU_PERIOD_USEC), 1000)} {CPU_PERIOD_USEC}")

    def hits(self) -> dict[str, int]:
        """Return how often each limit was met, by its cause."""
        if self._changed.poll(0):
            self._hits = self._read_hits()
        return self._hits

    def usage(self) -> dict[str, int]:
        """Returns the bytes in use now, and at most so far (Linux 5.19)."""
        found = {}
        for name, file in (("memory_bytes", "memory.current"), ("peak_bytes", "memory.peak")):
            with contextlib.suppress(OSError, ValueError):
                found[name] = int(_read(os.path.join(self._path, file)))
        return found

    def _read_hits(self) -> dict[str, int]:
        return {cause: _field(os.pread(fd, 512, 0), field) for cause, fd, field in self._counters}

    def _set(self, name: str, value: str) -> None:
        KERNEL.write(os.path.join(self._path, name), value)


def _field(text: bytes, name: bytes) -> int:
    for line in text.splitlines():
        word, _, number = line.partition(b" ")
        if word == name:
            return int(number)
    return 0


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
