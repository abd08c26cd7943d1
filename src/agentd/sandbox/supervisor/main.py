"""``python -m agentd.sandbox.supervisor.main SOCKET``: started by a daemon, ends when it is idle.

It holds the lock beside its socket for as long as it lives, so there is one a socket. It ends by
itself when it has no sandbox and no daemon for a while, or its names are removed then, or when the
daemon says so.
"""

import atexit
import gc
import os
import signal
import socket
import sys
import threading

from agentd.linux.peer import peer_of
from agentd.linux.process import raise_file_limit
from agentd.linux.title import set_title
from agentd.sandbox import guard
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.cgroups import own_hierarchy
from agentd.sandbox.supervisor.held import boottime
from agentd.sandbox.supervisor.own_socket import OwnSocket
from agentd.sandbox.supervisor.server import Supervisor

# Long enough for a daemon to be restarted by hand.
_IDLE_SECONDS = 60.0
_TICK_SECONDS = 1.0
_PAUSE_SECONDS = 0.1


def main() -> int:
    path = sys.argv[1]
    if os.fork():
        os._exit(0)  # the caller waits for this
    own = OwnSocket(path)
    if not own.take():
        return 0  # another one serves this socket already
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise_file_limit()
    own_hierarchy()  # removes the groups of one that was killed
    identity.reclaim()  # and frees its ids
    own.listen(_TICK_SECONDS)
    set_title("agentd-super")
    supervisor = Supervisor()
    signal.signal(signal.SIGTERM, lambda *_: supervisor.closing.set())
    try:
        _run(supervisor, own)
    finally:
        own.close()
        supervisor.close()
    return 0


def _run(supervisor: Supervisor, own: OwnSocket) -> None:
    threading.Thread(target=supervisor.watch, name="leases", daemon=True).start()
    while not supervisor.closing.is_set():
        try:
            came = _accept(supervisor, own.listener)
            if not came and supervisor.is_idle:
                if own.is_removed():
                    return  # whoever clears the folder is done with it: nothing is made in it anew
            elif not (came or own.keep(_TICK_SECONDS) or supervisor.daemon):
                return  # another has our place: nobody can ever ask us again
        except (OSError, RuntimeError) as error:  # out of descriptors or threads: it asks again
            guard.tell(error)
            supervisor.closing.wait(_PAUSE_SECONDS)
        if boottime() - supervisor.idle_since > _IDLE_SECONDS:
            return


def _accept(supervisor: Supervisor, listener: socket.socket) -> bool:
    """Return whether somebody came within a tick."""
    try:
        daemon, _ = listener.accept()
    except TimeoutError:
        return False
    try:
        if _is_ours(daemon):
            threading.Thread(target=supervisor.serve, args=(daemon,), daemon=True).start()
            return True
    except BaseException:
        daemon.close()
        raise
    daemon.close()
    return True


def _is_ours(connection: socket.socket) -> bool:
    """Of our own user, and no sandbox: one of an ordinary user's is that user, too, and finds the
    socket where a folder that is mounted in it has the daemon's state."""
    found = peer_of(connection)
    return found.uid == os.geteuid() and not found.foreign


if __name__ == "__main__":
    atexit.register(gc.freeze)  # its end has nothing to look for in what it holds
    sys.exit(main())
