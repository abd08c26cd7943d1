"""``python -m agentd.sandbox.supervisor.main SOCKET``: started by a daemon, ends when it is idle.

It holds the lock beside its socket for as long as it lives, so there is one a socket. It ends by
itself when it has no sandbox and no daemon for a while, or when the daemon says so.
"""

import atexit
import contextlib
import fcntl
import gc
import os
import select
import signal
import socket
import sys
import threading

from agentd.linux.process import raise_file_limit
from agentd.linux.title import set_title
from agentd.sandbox import guard
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.cgroups import own_hierarchy
from agentd.sandbox.supervisor.held import boottime
from agentd.sandbox.supervisor.server import Supervisor

# Long enough for a daemon to be restarted by hand.
_IDLE_SECONDS = 60.0
_TICK_SECONDS = 1.0
_PAUSE_SECONDS = 0.1


def main() -> int:
    path = sys.argv[1]
    if os.fork():
        os._exit(0)  # the caller waits for this
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0  # another one serves this socket already
    os.ftruncate(lock, 0)
    os.write(lock, b"%d\n" % os.getpid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise_file_limit()
    own_hierarchy()  # removes the groups of one that was killed
    identity.reclaim()  # and frees its ids
    listener = _listen(path)
    set_title("agentd-super")
    supervisor = Supervisor()
    signal.signal(signal.SIGTERM, lambda *_: supervisor.closing.set())
    try:
        _run(supervisor, listener)
    finally:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        supervisor.close()
    return 0


def _listen(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of one that was killed: we hold the lock
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(8)
    return listener


def _run(supervisor: Supervisor, listener: socket.socket) -> None:
    threading.Thread(target=supervisor.watch, name="leases", daemon=True).start()
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while not supervisor.closing.is_set():
        if poll.poll(_TICK_SECONDS * 1000):
            try:
                _accept(supervisor, listener)
            except (OSError, RuntimeError) as error:  # out of descriptors or threads: it asks again
                guard.tell(error)
                supervisor.closing.wait(_PAUSE_SECONDS)
        if boottime() - supervisor.idle_since > _IDLE_SECONDS:
            return


def _accept(supervisor: Supervisor, listener: socket.socket) -> None:
    daemon, _ = listener.accept()
    try:
        if _same_user(daemon):
            threading.Thread(target=supervisor.serve, args=(daemon,), daemon=True).start()
            return
    except BaseException:
        daemon.close()
        raise
    daemon.close()


def _same_user(peer: socket.socket) -> bool:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder) == os.geteuid()


if __name__ == "__main__":
    atexit.register(gc.freeze)  # its end has nothing to look for in what it holds
    sys.exit(main())
