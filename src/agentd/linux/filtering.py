"""Puts a process under a seccomp filter, which ``seccomp`` has built: here, or on the host.

By itself, as an agent that is born anew for each sandbox is not to import how one is built.
"""

import ctypes
import errno
import os

from agentd.linux import abi
from agentd.linux.kernel import KERNEL, Kernel

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_TSYNC = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
#: The kernel's own (include/linux/errno.h), of a filter that it could not compile.
ENOTSUPP = 524


def install_and_listen(program: bytes, kernel: Kernel = KERNEL) -> int:
    """Put the calling process, of one thread, under ``program``, as ``install`` does.

    Return the descriptor, close-on-exec, at which what the filter asks is answered; -1 where none
    can be had: a filter around us has one, and a process can have one alone. Raises OSError.
    """
    header = _SockFprog(len(program) // 8, program)
    try:
        return kernel.syscall(
            abi.SYS.seccomp,
            SECCOMP_SET_MODE_FILTER,
            SECCOMP_FILTER_FLAG_NEW_LISTENER,
            ctypes.byref(header),
        )
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EINVAL):
            raise _explained(error) from None
    install(program, kernel)
    return -1


class _SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(program: bytes, kernel: Kernel = KERNEL) -> None:
    """Put every thread of the calling process and all its descendants under ``program``, for good.

    Set no_new_privs before: without it the kernel answers EACCES to the unprivileged, and to root
    gives a filter under which setuid programs still gain privileges. Raises OSError.
    """
    header = _SockFprog(len(program) // 8, program)
    operation = SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
    try:
        thread = kernel.syscall(abi.SYS.seccomp, *operation, ctypes.byref(header))
    except OSError as error:
        raise _explained(error) from None
    if thread:  # seccomp(2): the id of a thread with another filter, and nothing was installed
        raise OSError(
            errno.EBUSY,
            f"{os.strerror(errno.EBUSY)}: thread {thread} has a seccomp filter of its own; "
            "install before starting threads",
        )


def _explained(error: OSError) -> OSError:
    if error.errno != ENOTSUPP:
        return error
    text = "the machine's memory for filters is used up (net.core.bpf_jit_limit)"
    return OSError(ENOTSUPP, text)
