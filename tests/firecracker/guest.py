"""The fake machine's guest: a real agent as a child process, and the hybrid socket before it.

The host's half of vsock is as Firecracker's: the line is parsed from what one read brought, an end
of the host's is an end of both directions, and a snapshot resets every connection, of which the
host hears nothing before it sends something. What it does not prove is virtio: that is tested with
a device of our own and a kernel that drives it.
"""

import contextlib
import json
import os
import select
import signal
import socket
import tempfile
import threading
from typing import NoReturn

from tests.vm import v1_only

from agentd.guest.agent import create
from agentd.guest.loop import Loop
from agentd.guest.operation import RequestError
from agentd.guest.stepped import plain
from agentd.guest.vm_setup import Setup

_MAX_LINE = 32
_CHUNK = 64 << 10
_FIRST_PORT = 1 << 30
#: What the agent of a virtual machine answers to sys.setup where it is the machine's own.
CONTROLS = [
    "entropy", "clock", "hostname", "machine_id", "boot_id", "memory", "cpus", "pids", "disk",
    "open_files",
]  # fmt: skip


class Guest:
    """``path`` is where its agent listens. ``original``: that is one that speaks v1 alone;
    ``older``: one of a release that knew no authority of a network's."""

    def __init__(self, *, original: bool = False, older: bool = False) -> None:
        # Relative: a socket's address is short, and a jail's path is not.
        self._folder = os.path.relpath(tempfile.mkdtemp(prefix="guest-", dir="."))
        self.path = f"{self._folder}/agent"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen(128)
        self.pid = os.fork()
        if self.pid == 0:
            if original:
                _be_original(listener, self._folder)
            _be_agent(listener, self._folder, older=older)
        listener.close()


def _be_original(listener: socket.socket, folder: str) -> NoReturn:
    """Its image is its own root: here that is the jail."""
    try:
        _close_all_but({listener.fileno()})
        os.chdir(folder)
        v1_only.serve(listener)
    finally:
        os._exit(0)


def _be_agent(listener: socket.socket, folder: str, *, older: bool) -> NoReturn:
    """As an ordinary process it must not set this machine's clock or stop its processes."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(f"{folder}/asked", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        told = os.open(f"{folder}/told", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        home = os.getcwd()
        _close_all_but({listener.fileno(), log, told})
        loop = Loop()
        agent = create(loop, pid1=False)
        agent.processes.set_environment({"PATH": "/usr/bin:/bin", "HOME": home})

        def answer(op: str, **fields: object):  # type: ignore[no-untyped-def]
            def reply(channel, request):  # type: ignore[no-untyped-def]
                os.write(log, f"{op} {sorted(set(request) - {'op'})}\n".encode())
                channel.finish("result", **fields)

            return plain(reply)

        def set_up(channel, request):  # type: ignore[no-untyped-def]
            net = Setup(request).net
            if older and net is not None and net.authority is not None:
                raise RequestError("net has no field 'authority'")
            os.write(told, json.dumps(request).encode() + b"\n")
            os.write(log, f"sys.setup {sorted(set(request) - {'op'})}\n".encode())
            channel.finish("result", controls=CONTROLS)

        agent.extend(
            lambda _: {
                "sys.setup": plain(set_up),
                "sys.clock": answer("sys.clock"),
                "sys.freeze": answer("sys.freeze"),
                "sys.thaw": answer("sys.thaw"),
            },
            "setup",
        )
        agent.listen(listener)
        loop.run()
    finally:
        os._exit(0)


def _close_all_but(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))


class Hybrid:
    """Serves the host's side of the vsock device until the process ends."""

    def __init__(self, listener: socket.socket, agent: str) -> None:
        self._listener = listener
        self._agent = agent
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()  # the agent's ends
        self._running = threading.Event()
        self._running.set()
        self._next = _FIRST_PORT
        threading.Thread(target=self._accept, daemon=True).start()

    def paused(self, paused: bool) -> None:
        if paused:
            self._running.clear()
        else:
            self._running.set()

    def reset(self) -> None:
        """VIRTIO_VSOCK_EVENT_TRANSPORT_RESET: the guest closes every connection, and answers what
        comes on one of them with RST."""
        with self._lock:
            doomed, self._open = self._open, set()
        for agent in doomed:
            with contextlib.suppress(OSError):
                agent.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
            try:
                port = _port(client)
                self._running.wait()
                if port != 5000:
                    return  # nobody listens: RST
                agent.connect(self._agent)
                with self._lock:
                    self._next += 1
                    client.sendall(b"OK %d\n" % self._next)
                    self._open.add(agent)
                self._pump(client, agent)
            except OSError:
                return
            finally:
                with self._lock:
                    self._open.discard(agent)

    def _pump(self, client: socket.socket, agent: socket.socket) -> None:
        """Until either side ends: the host's half-close is a whole one here."""
        other = {client: agent, agent: client}
        while True:
            for sock in select.select([client, agent], [], [])[0]:
                self._running.wait()
                data = sock.recv(_CHUNK)
                if not data and agent not in self._open:
                    client.recv(1)  # was reset: nobody is told before something is sent
                if not data:
                    return
                other[sock].sendall(data)


def _port(client: socket.socket) -> int:
    """muxer.rs reads ten bytes at once, then one by one to the end of the line."""
    line = client.recv(10)
    while not line.endswith(b"\n"):
        byte = client.recv(1)
        if not byte or len(line) >= _MAX_LINE:
            raise OSError("no such line")
        line += byte
    words = line.split()
    if len(words) != 2 or words[0].lower() != b"connect":
        raise OSError("no such line")
    return int(words[1])
