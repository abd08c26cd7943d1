"""What a machine's programs dial and ask, passed on to a host that does not keep up."""

import contextlib
import os
import socket
import sys

import pytest

from agentd.guest.loop import READ, Loop
from agentd.guest.vm_streams import MAX_UNSENT, Front

FLOOD = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("127.0.0.1", int(sys.argv[1])))
for _ in range(20_000):
    sock.send(bytes(1000))
"""


@pytest.fixture
def loop():
    made = Loop()
    yield made
    made.close()


def test_questions_that_the_host_does_not_take_fill_no_memory(loop):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs, ours, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.bind(("127.0.0.1", 0))
        front = Front(loop, [asked], lambda: ours)
        argv = [sys.executable, "-I", "-c", FLOOD, str(asked.getsockname()[1])]
        pid = os.posix_spawn(argv[0], argv, {})
        ended = os.pidfd_open(pid)
        loop.watch(ended, READ, lambda _: loop.stop())
        loop.run()
        loop.forget(ended)
        os.close(ended)
        assert os.waitpid(pid, 0)[1] == 0
        assert 0 < len(front._asking._out) < 2 * MAX_UNSENT
        with contextlib.suppress(BlockingIOError):  # what is left would be asked before the next
            while True:
                asked.recv(4096, socket.MSG_DONTWAIT)
        # It goes away, and the next one is asked.
        theirs.shutdown(socket.SHUT_RDWR)
        again, host = socket.socketpair()
        again.setblocking(False)
        front.dial = lambda: again
        with again, host, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
            loop.after(0, lambda: asks.sendto(b"a question", asked.getsockname()))
            loop.watch(host.fileno(), READ, lambda _: loop.stop())
            loop.run()
            loop.forget(host.fileno())
            assert host.recv(4096).endswith(b"a question")
