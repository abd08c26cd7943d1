"""A dry run of the agent, so that the first real command of a sandbox is not its first.

In the zygote it lets the interpreter specialise the code once for all sandboxes; in a sandbox that
waits for its request it copies the pages that the first command would have to copy.
"""

import array
import contextlib
import os
import select
import socket

from agentd.guest import agent, wire
from agentd.guest.listener import FdListener
from agentd.guest.loop import Loop
from agentd.guest.zygote import box
from agentd.guest.zygote.group import enter_group
from agentd.guest.zygote.wall_kernel import WallKernel

_PROGRAM = "/bin/true"
_READ = 4096
_SECONDS = 1.0  # at most
# A command takes about one millisecond; how often to look whether it has ended, in seconds.
_LOOK = 0.0003
# What a request holds beside the plain one's.
REQUEST: dict[str, object] = {
    "hostname": "",
    "private_root": False,
    "cow": False,
    "mounts": [],
    "without": [],
    "open_files": 64,
    "user_rlimits": [],
    "pids": 64,
}


def rehearse_wall(plain: dict[str, object], filter_: bytes) -> None:
    """Go through what builds a wall, without building any."""
    fds: list[int] = []
    with contextlib.suppress(box.BoxError):  # the first sandbox will say why
        box.confine({**plain, **REQUEST}, fds, filter_, WallKernel(dry=True))
    for fd in fds:
        os.close(fd)
    host, listener = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with host, listener:
        host.send(b"c")
        enter_group(listener)


def rehearse(commands: int) -> None:
    """Run ``commands`` times /bin/true through an agent of its own, in this process."""
    loop = Loop()
    ours, theirs = socket.socketpair()
    rehearsed = agent.create(loop, pid1=True)
    rehearsed.processes.trust()  # the zygote's children are sandboxes
    host, listener = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    served: list[socket.socket] = []

    def serve(sock: socket.socket) -> None:
        served.append(sock)
        rehearsed.serve_stream(sock)

    accept = FdListener(loop, listener, serve, loop.stop)
    socket.send_fds(host, [b"c"], [theirs.fileno()])
    theirs.close()
    ours.sendall(wire.HELLO)

    def ask(left: int) -> None:
        if not left:
            ours.close()  # the agent, told so before any timer, ends the connection
            loop.after(0, loop.stop)
            return
        _send(ours, left)
        await_end(left)

    poll = select.poll()  # select(2) would take twelve pages of stack for its three sets
    poll.register(ours, select.POLLIN)

    def await_end(left: int) -> None:
        told = ours.recv(_READ) if poll.poll(0) else b"..."
        if b'"exited"' in told:
            ask(left - 1)
        elif told and b'"failed"' not in told:
            loop.after(_LOOK, lambda: await_end(left))
        else:
            loop.stop()

    try:
        loop.after(_SECONDS, loop.stop)
        ask(commands)
        loop.run()
    finally:
        # Not ``rehearsed.stop()``: it kills every child, and the zygote's children are sandboxes.
        for process in rehearsed.processes:
            process.abandon()
            with contextlib.suppress(ChildProcessError):  # else it stays, dead, for good
                os.waitpid(process.pid, 0)
        rehearsed.processes.close()
        accept.close()
        for sock in served:  # what the agent has not noticed the end of: each clone would have it
            sock.close()
        loop.close()
        host.close()
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
