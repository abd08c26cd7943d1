"""What ``ps`` shows of this process: the command line that started it may name the host's paths."""

import ctypes

from agentd.linux import abi
from agentd.linux.kernel import KERNEL

_PR_SET_NAME = 15
# /proc/PID/stat, fields 48 and 49 of proc(5): where the arguments begin and end in memory.
_ARG_START, _ARG_END = 47, 48


def set_title(name: str) -> None:
    """Overwrite the arguments with ``name``, cut to their size, and set the command name."""
    with open("/proc/self/stat", "rb") as file:
        head, _, tail = file.read().rpartition(b") ")
    fields = [head, *tail.split()]
    start, end = int(fields[_ARG_START - 1]), int(fields[_ARG_END - 1])
    size = end - start
    if size > 0:
        ctypes.memmove(start, name.encode()[: size - 1].ljust(size, b"\0"), size)
    KERNEL.syscall(abi.SYS.prctl, _PR_SET_NAME, name.encode(), 0, 0, 0)
