"""What every attack begins and ends with.

``NR`` has the system call numbers by name; ``call(name, *args)`` makes a raw system call and gives
its result or the name of its errno; ``tried(action, *args)`` the same for Python; ``said(name,
value)`` tells what was found out.
"""

from agentd.linux import abi
from agentd.linux.seccomp.tables import numbers

PRELUDE = f"""
import ctypes, errno, os, signal, socket, struct, sys
NR = {numbers(abi.MACHINE)!r}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
def call(name, *args):
    if name not in NR and not isinstance(name, int):
        return "ENOSYS"
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    number = NR[name] if isinstance(name, str) else name
    result = _libc.syscall(ctypes.c_long(number), *words)
    return errno.errorcode[ctypes.get_errno()] if result == -1 else result
def tried(action, *args):
    try:
        return action(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
def opens(path, flags=os.O_RDONLY):
    got = tried(os.open, path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if isinstance(got, int):
        os.close(got)
        return "opened"
    return got
def said(name, value):
    print(name, value, sep="=", flush=True)
def in_child(action):
    # "done", the name of an errno, or the signal that ended it; what it changed goes with it.
    pid = os.fork()
    if pid == 0:
        got = action()
        os._exit(getattr(errno, got) if isinstance(got, str) else 0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        return signal.Signals(-status).name
    return errno.errorcode[status] if status else "done"
"""
POSTLUDE = "\nsaid('end', 'reached')\n"


def source(script: str) -> str:
    return PRELUDE + script + POSTLUDE
