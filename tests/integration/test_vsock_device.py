"""Our vsock device under a real QEMU and a real Linux driver: one boot for every check.

The last two leave the guest rebooted, and without its device: their order matters.
"""

import hashlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.vm import debian
from tests.vm.vsock.boot import Machine, gone, read_all

MIB = 1 << 20
SECONDS = 500.0  # generous: software emulation, and the machine may be busy
ECONNRESET = 104
EPIPE = 32
DATA = random.Random(3).randbytes(4 * MIB)  # noqa: S311
pytestmark = pytest.mark.timeout(1800)  # what is emulated takes its time beside others


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    try:
        made = Machine()
    except debian.Unavailable as missing:
        pytest.skip(f"needs a guest under QEMU: {missing}")
    with made:
        made.ask("boot")
        yield made


def sent(stream: socket.socket, data: bytes) -> threading.Thread:
    """Data and a half close, from a thread of its own."""

    def send() -> None:
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def eventually(machine: Machine, name: str) -> bytes:
    """A result that the guest found in its own time."""
    deadline = time.monotonic() + SECONDS
    while (answer := machine.ask(f"result {name}")) == b"None":
        assert time.monotonic() < deadline, machine.console()
        time.sleep(0.05)
    return answer


def test_what_is_sent_at_once_after_the_line_arrives(machine: Machine) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(SECONDS)
        stream.connect(machine.path)
        stream.sendall(b"CONNECT 5000\necho\nhello")
        stream.shutdown(socket.SHUT_WR)
        line, _, rest = read_all(stream).partition(b"\n")
        assert line.startswith(b"OK ")
        assert rest == b"hello"


def test_a_port_where_nobody_listens_closes_the_client(machine: Machine) -> None:
    assert machine.attempt(4999) is None


def test_many_streams_at_once_arrive_whole_in_both_directions(machine: Machine) -> None:
    streams = [machine.connect("echo") for _ in range(24)]
    threads = [sent(stream, DATA[number:MIB]) for number, stream in enumerate(streams)]
    for number, stream in enumerate(streams):
        assert hashlib.sha256(read_all(stream)).digest() == digest(DATA[number:MIB])
        stream.close()
    for thread in threads:
        thread.join()


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_a_half_close_ends_the_input_and_the_answer_still_comes(machine: Machine) -> None:
    with machine.connect("sink") as stream:
        thread = sent(stream, DATA)
        expected = f"{len(DATA)} {hashlib.sha256(DATA).hexdigest()}\n"
        assert read_all(stream) == expected.encode()
        thread.join()


def test_a_guests_half_close_leaves_its_input_open(machine: Machine) -> None:
    with machine.connect("finish") as stream:
        assert read_all(stream) == b"greeting"
        stream.sendall(b"x" * 100_000)
        stream.shutdown(socket.SHUT_WR)
        assert eventually(machine, "finish") == b"100000"


def test_a_client_that_reads_late_loses_nothing(machine: Machine) -> None:
    with machine.connect(f"source {8 * MIB}") as slow:
        assert machine.ask("boot")  # the others go on
        time.sleep(1)
        content = read_all(slow)
    assert digest(content) == digest(bytes(range(256)) * (8 * MIB // 256))


def test_a_writer_in_the_guest_sees_a_client_go(machine: Machine) -> None:
    with machine.connect("gone") as stream:
        assert stream.recv(1) == b"x"
    assert int(eventually(machine, "gone")) in (EPIPE, ECONNRESET)


def test_a_reader_in_the_guest_sees_an_idle_client_go(machine: Machine) -> None:
    machine.connect("ended").close()
    assert eventually(machine, "ended") == b"0"


def test_a_guest_connects_to_the_host(machine: Machine) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{machine.path}_700")
        listener.listen(8)
        listener.settimeout(SECONDS)
        with machine.connect("dial 700") as stream:
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(SECONDS)
                assert read_all(accepted) == b"hello"  # and the guest's half close
                thread = sent(accepted, DATA)
                assert digest(read_all(stream)) == digest(DATA)
                thread.join()


def test_a_guest_cannot_connect_where_nobody_listens(machine: Machine) -> None:
    assert machine.ask("dial 701") == b"errno %d" % ECONNRESET


def test_half_open_clients_do_not_disturb(machine: Machine) -> None:
    flood = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(400)]
    try:
        for stream in flood:
            stream.connect(machine.path)
            stream.sendall(b"CONN")
        assert machine.ask("boot")
        assert len(os.listdir(f"/proc/{machine.device.pid}/fd")) < 300
    finally:
        for stream in flood:
            stream.close()


def test_connections_come_and_go_without_a_trace(machine: Machine) -> None:
    machine.ask("boot")
    before = len(os.listdir(f"/proc/{machine.device.pid}/fd"))
    for _ in range(300):
        machine.connect("boot").close()
    deadline = time.monotonic() + SECONDS
    while len(os.listdir(f"/proc/{machine.device.pid}/fd")) > before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_reboot_ends_live_streams_and_the_guest_comes_back(machine: Machine) -> None:
    first = machine.ask("boot")
    with machine.connect("echo") as live:
        live.sendall(b"x")
        assert live.recv(1) == b"x"
        machine.connect("reboot").close()
        try:
            assert live.recv(1) == b""
        except TimeoutError:
            pytest.fail(machine.console())
    assert machine.ask("boot") != first
    with machine.connect("sink") as stream:
        sent(stream, DATA).join()
        assert read_all(stream).startswith(b"%d " % len(DATA))
    assert machine.device.poll() is None


def test_a_device_that_is_killed_ends_its_streams_and_not_the_machine(machine: Machine) -> None:
    with machine.connect("echo") as live:
        live.sendall(b"x")
        assert live.recv(1) == b"x"
        machine.device.kill()
        assert live.recv(1) == b""
        assert gone(live, SECONDS)
        machine.device.wait(SECONDS)
    with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as stream:
        stream.connect(machine.path)
    assert machine.qemu.poll() is None
