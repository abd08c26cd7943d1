"""The wall's way to the agent through a device of virtio-vsock: our own, which speaks the same
hybrid socket, a driver in memory in place of a guest's kernel, and a real agent behind that.

What this proves is our half of the protocol against rings, credit and resets; Firecracker's
own device is not part of it.
"""

import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.firecracker.guest import Guest as Machine
from tests.unit.vsock.vmm import Vmm

from agentd.model.errors import BackendLost
from agentd.model.spec import ExecRequest
from agentd.sandbox.backends.firecracker import wall
from agentd.sandbox.backends.firecracker.jailer import Jail, Root
from agentd.sandbox.backends.vm.handshake import tell
from agentd.transport.guest import Guest
from agentd.vsock import packet

PORT = 5000
_MOST = 60_000  # bytes a packet
_BOTH = 3  # VIRTIO_VSOCK_SHUTDOWN_RCV and _SEND


class Kernel(threading.Thread):
    """The guest's: takes the host's connections to one port and carries them to the agent."""

    def __init__(self, vmm: Vmm, agent: str) -> None:
        super().__init__()
        self._vmm = vmm
        self._agent = agent
        self._open: dict[int, socket.socket] = {}
        self._sent: dict[int, int] = {}
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.is_set():
            for got in self._vmm.receive():
                self._take(got.host_port, got.guest_port, got.op, got.data)
            for port in list(self._open):
                self._give(port)
        for sock in self._open.values():
            sock.close()

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def _take(self, port: int, wanted: int, op: int, data: bytes) -> None:
        if op == packet.REQUEST:
            self._accept(port, wanted)
        elif op == packet.RW and port in self._open:
            with suppress(OSError):
                self._open[port].setblocking(True)
                self._open[port].sendall(data)
            self._vmm.send(packet.CREDIT_UPDATE, port, PORT)
        elif op == packet.CREDIT_REQUEST:
            self._vmm.send(packet.CREDIT_UPDATE, port, PORT)
        elif op in (packet.SHUTDOWN, packet.RST):
            self._drop(port, answer=op == packet.SHUTDOWN)

    def _accept(self, port: int, wanted: int) -> None:
        if wanted != PORT:
            self._vmm.send(packet.RST, port, wanted)
            return
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self._agent)
        self._open[port], self._sent[port] = sock, 0
        self._vmm.send(packet.RESPONSE, port, PORT)

    def _give(self, port: int) -> None:
        alloc, forwarded = self._vmm.peer[port, PORT]
        room = min(alloc - (self._sent[port] - forwarded), _MOST)
        sock = self._open[port]
        if room <= 0 or not select.select([sock], [], [], 0)[0]:
            return
        data = sock.recv(room)
        if data:
            self._sent[port] += len(data)
            self._vmm.send(packet.RW, port, PORT, data)
        else:
            self._vmm.send(packet.SHUTDOWN, port, PORT, flags=_BOTH)
            self._drop(port, answer=False)

    def _drop(self, port: int, *, answer: bool) -> None:
        sock = self._open.pop(port, None)
        if sock is not None:
            sock.close()
        if answer:
            self._vmm.send(packet.RST, port, PORT)


@pytest.fixture
def monitor(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """As the wall sees one: alive, with a vsock in its jail."""
    monkeypatch.chdir(place)
    machine = Machine()
    jail = Jail(str(place), "vm", os.getuid())
    os.makedirs(jail.root)
    with Vmm(jail.root) as vmm:
        os.rename(vmm.path, f"{jail.root}/vsock")
        root = Root(jail)
        kernel = Kernel(vmm.start(), f"{place}/{machine.path}")
        kernel.start()
        try:
            yield SimpleNamespace(alive=lambda: True, root=root)
        finally:
            kernel.stop()
            root.close()
            os.kill(machine.pid, signal.SIGKILL)
            os.waitpid(machine.pid, 0)


@pytest.fixture
def guest(monitor: SimpleNamespace) -> Iterator[Guest]:
    guest = Guest(lambda: wall.open_stream(monitor, 20), passes_descriptors=False)
    yield guest
    guest.close()


def test_a_command_runs(guest: Guest) -> None:
    end, stdout, _, _ = guest.run(ExecRequest(("echo", "through rings")))
    assert (end.exit_code, stdout) == (0, b"through rings\n")


def test_a_megabyte_goes_there_and_back(guest: Guest) -> None:
    data = os.urandom(1 << 20)
    _, stdout, _, _ = guest.run(ExecRequest(("cat",)), stdin=data)
    assert stdout == data


def test_streams_run_beside_each_other(guest: Guest) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda n: guest.run(ExecRequest(("echo", str(n))))[1], range(12)))
    assert done == [b"%d\n" % n for n in range(12)]


def test_the_walls_own_operations_get_through(monitor: SimpleNamespace, place: Path) -> None:
    tell(wall.open_stream(monitor, 20), ("sys.freeze", "sys.clock", "sys.thaw"), 20)
    (asked,) = place.glob("guest-*/asked")
    assert [line.split()[0] for line in asked.read_text().splitlines()] == [
        "sys.freeze", "sys.clock", "sys.thaw",
    ]  # fmt: skip


def test_a_port_that_nobody_listens_on_is_given_up(
    monitor: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wall, "PORT", 6000)
    with pytest.raises(BackendLost, match="no agent answers"):
        wall.open_stream(monitor, 0.3)
