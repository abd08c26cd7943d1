"""The front end of a machine's network: what is dialled in it goes out as streams to its host.

A process of its own beside the agent, root, which holds the sockets of ``linux.anyip`` and passes
on what arrives at them (``vm_streams``). It decides nothing: whom a stream may reach is the host's
to say. The machine has no network card; without this process nothing that is dialled in it gets an
answer.
"""

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from agentd.guest.init import say
from agentd.guest.loop import READ, Loop
from agentd.guest.vm_streams import Front, dial_host
from agentd.linux import anyip, process, rights
from agentd.linux.title import set_title

RESOLVER = f"nameserver {anyip.NAMESERVER}\n"
_AGAIN_SECONDS = 0.5


class FrontEnd:
    """The agent's hold of it: keeps one running, with the same sockets, until ``close``."""

    def __init__(self, loop: Loop, sockets: list[socket.socket], port: int) -> None:
        """Takes ownership of ``sockets``. Raises OSError where none can be started."""
        self._loop, self._sockets, self._port = loop, sockets, port
        self._pidfd = -1
        self._start()

    def close(self) -> None:
        if self._pidfd >= 0:
            self._loop.forget(self._pidfd)
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
            self._pidfd = -1
        for sock in self._sockets:
            sock.close()
        self._sockets = []

    def _start(self) -> None:
        fd = _orphan(partial(_run, self._sockets, self._port))
        self._pidfd = fd
        self._loop.watch(fd, READ, self._ended)

    def _ended(self, _: int) -> None:
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        say("the front end of the network ended: starting it again")
        self._loop.after(_AGAIN_SECONDS, self._again)

    def _again(self) -> None:
        if not self._sockets:
            return
        try:
            self._start()
        except OSError as error:
            say(f"the front end of the network cannot be started: {error}")
            self._loop.after(_AGAIN_SECONDS, self._again)


def _orphan(run: Callable[[], NoReturn]) -> int:
    """A process that is not our child, so that nothing runs below us; its pidfd. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        try:
            pid = os.fork()
            if pid == 0:
                _fork_again(run, theirs)
        finally:
            theirs.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        _, fds, _ = rights.receive(ours, 1, 1)
    if not fds:
        raise OSError(errno.EAGAIN, "no process can be made")
    return fds[0]


def _fork_again(run: Callable[[], NoReturn], theirs: socket.socket) -> NoReturn:
    try:
        pid = os.fork()
        if pid == 0:
            theirs.close()
            run()
        socket.send_fds(theirs, [b"p"], [os.pidfd_open(pid)])
    finally:
        os._exit(0)


def _run(sockets: list[socket.socket], port: int) -> NoReturn:
    try:
        os.setsid()
        set_title("agentd-network")
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        process.close_all_but({0, 1, 2, *(sock.fileno() for sock in sockets)})
        process.raise_file_limit()
        loop = Loop(on_error=lambda error: say(f"front end: {type(error).__name__}: {error}"))
        Front(loop, sockets, partial(dial_host, port))
        loop.run()
    except BaseException as error:
        say(f"front end: {type(error).__name__}: {error}")
    finally:
        os._exit(1)
