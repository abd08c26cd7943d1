"""A dry run of the agent, so that the first real command of a sandbox is not its first.

In the zygote it lets the interpreter specialise the code once for all sandboxes; in a sandbox that
waits for its request it copies the pages that the first command would have to copy.
"""

import array
import os
import socket

from agentd.guest import agent, wire
from agentd.guest.loop import Loop

_PROGRAM = "/bin/true"
# A command takes about one millisecond; nothing waits for the last one to be answered.
_PAUSE = 0.004


def rehearse(commands: int) -> None:
    """Run ``commands`` times /bin/true through an agent of its own, in this process."""
    loop = Loop()
    ours, theirs = socket.socketpair()
    rehearsed = agent.create(loop, pid1=True)
    rehearsed.serve_stream(theirs)
    ours.sendall(wire.HELLO)

    def ask(left: int) -> None:
        if not left:
            ours.close()  # the agent ends the connection and its commands
            loop.after(_PAUSE, loop.stop)
            return
        _send(ours, left)
        loop.after(_PAUSE, lambda: ask(left - 1))

    try:
        ask(commands)
        loop.run()
    finally:
        # Not ``rehearsed.stop()``: it kills every child, and the zygote's children are sandboxes.
        for process in rehearsed.processes:
            process.abandon()
        rehearsed.processes.close()
        loop.close()
        ours.close()


def _send(sock: socket.socket, channel: int) -> None:
    request: dict[str, object] = {
        "op": "exec",
        "argv": [_PROGRAM],
        "cwd": "/",
        "fds": ["stdout", "stderr"],
    }
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    try:
        rights = array.array("i", [null, null])
        frame = wire.encode_json(wire.REQUEST, channel, request)
        sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    finally:
        os.close(null)
