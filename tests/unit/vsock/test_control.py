"""The VMM's side: what QEMU asks is answered, and what breaks the protocol ends the device."""

import contextlib
import os
import socket
import struct
import threading
from pathlib import Path

import pytest
from tests.unit.vsock.vmm import CID, HIGH_USER, LOW_USER, MIB, SIZE, Vmm

from agentd.vsock import wire
from agentd.vsock.device import Device
from agentd.vsock.errors import Violation

PAGE = 4096


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def u32(*values: int) -> bytes:
    return struct.pack(f"={len(values)}I", *values)


def table(*regions: tuple[int, int, int, int]) -> bytes:
    return u32(len(regions), 0) + b"".join(struct.pack("=QQQQ", *region) for region in regions)


def addresses(number: int, descriptors: int, used: int, available: int, flags: int = 0) -> bytes:
    return struct.pack("=IIQQQQ", number, flags, descriptors, used, available, 0)


def test_the_device_says_what_it_is(vmm: Vmm) -> None:
    assert vmm.ask(wire.GET_FEATURES) == u64(1 << 32 | 1 << 30)  # no EVENT_IDX, no INDIRECT
    assert vmm.ask(wire.GET_PROTOCOL_FEATURES) == u64(1 << 0 | 1 << 3 | 1 << 9)
    assert vmm.ask(wire.GET_QUEUE_NUM) == u64(2)


@pytest.mark.parametrize(
    ("offset", "size", "content"),
    [(0, 8, struct.pack("<Q", CID)), (0, 4, struct.pack("<I", CID)), (4, 4, bytes(4))],
)
def test_the_configuration_is_the_cid(vmm: Vmm, offset: int, size: int, content: bytes) -> None:
    answer = vmm.ask(wire.GET_CONFIG, u32(offset, size, 0) + bytes(size))
    assert answer == u32(offset, size, 0) + content


@pytest.mark.parametrize(("offset", "size", "sent"), [(0, 9, 9), (8, 1, 1), (0, 8, 4)])
def test_configuration_that_is_not_there_is_an_empty_answer(
    vmm: Vmm, offset: int, size: int, sent: int
) -> None:
    assert vmm.ask(wire.GET_CONFIG, u32(offset, size, 0) + bytes(sent)) == b""


def test_a_request_is_acknowledged_when_that_is_wanted(vmm: Vmm) -> None:
    vmm.raw(u32(wire.SET_OWNER, wire.VERSION | wire.NEED_REPLY, 0))
    vmm.step()
    flags = wire.VERSION | wire.REPLY
    assert vmm.control.recv(64) == u32(wire.SET_OWNER, flags, 8) + u64(0)


def test_a_request_in_pieces_is_one_request(vmm: Vmm) -> None:
    vmm.raw(u32(wire.GET_QUEUE_NUM, wire.VERSION, 0)[:5])
    vmm.raw(u32(wire.GET_QUEUE_NUM, wire.VERSION, 0)[5:])
    vmm.step()
    assert vmm.control.recv(64)[12:] == u64(2)


def test_the_end_of_the_control_socket_ends_the_device(vmm: Vmm) -> None:
    sock, _ = vmm.connected()
    with sock:
        vmm.control.shutdown(socket.SHUT_RDWR)
        vmm.device.run()
        assert sock.recv(1) == b""


LOW = (0, MIB, LOW_USER, 0)
BAD = {
    "unknown request": (99, b"", 0),
    "SET_LOG_BASE": (6, bytes(16), 1),
    "SET_CONFIG": (25, bytes(20), 0),
    "ADD_MEM_REG": (37, bytes(40), 1),
    "feature not offered": (wire.SET_FEATURES, u64(1 << 29), 0),
    "protocol feature not offered": (wire.SET_PROTOCOL_FEATURES, u64(1 << 15), 0),
    "short payload": (wire.SET_FEATURES, bytes(4), 0),
    "long payload": (wire.GET_FEATURES, bytes(4), 0),
    "descriptor unasked": (wire.SET_FEATURES, u64(1 << 32), 1),
    "config without header": (wire.GET_CONFIG, bytes(8), 0),
    "table without header": (wire.SET_MEM_TABLE, bytes(4), 0),
    "table shorter than it says": (wire.SET_MEM_TABLE, u32(2, 0) + bytes(32), 2),
    "table of too many": (wire.SET_MEM_TABLE, u32(1 << 31, 0), 0),
    "descriptor missing": (wire.SET_MEM_TABLE, table(LOW), 0),
    "descriptor too many": (wire.SET_MEM_TABLE, table(LOW), 2),
    "region of nothing": (wire.SET_MEM_TABLE, table((0, 0, LOW_USER, 0)), 1),
    "region past the file": (wire.SET_MEM_TABLE, table((0, 3 * MIB, LOW_USER, 0)), 1),
    "region from past the file": (wire.SET_MEM_TABLE, table((0, PAGE, LOW_USER, 2 * MIB)), 1),
    "region that wraps": (wire.SET_MEM_TABLE, table((2**64 - PAGE, PAGE * 2, LOW_USER, 0)), 1),
    "offset that wraps": (wire.SET_MEM_TABLE, table((0, PAGE, LOW_USER, 2**64 - PAGE)), 1),
    "VMM address that wraps": (wire.SET_MEM_TABLE, table((0, PAGE * 2, 2**64 - PAGE, 0)), 1),
    "huge region": (wire.SET_MEM_TABLE, table((0, 2**63, LOW_USER, 0)), 1),
    "overlap in the guest": (wire.SET_MEM_TABLE, table(LOW, (PAGE, MIB, HIGH_USER, 0)), 2),
    "overlap in the VMM": (wire.SET_MEM_TABLE, table(LOW, (MIB, MIB, LOW_USER + 1, 0)), 2),
    "queue 2": (wire.SET_VRING_NUM, u32(2, SIZE), 0),
    "queue 2 kicked": (wire.SET_VRING_KICK, u64(2), 1),
    "queue 2 stopped": (wire.GET_VRING_BASE, u32(2, 0), 0),
    "number of a running queue": (wire.SET_VRING_NUM, u32(0, SIZE), 0),
    "base of a running queue": (wire.SET_VRING_BASE, u32(0, 0), 0),
    "addresses of a running queue": (wire.SET_VRING_ADDR, addresses(0, 0, 0, 0), 0),
    "kick of a running queue": (wire.SET_VRING_KICK, u64(0), 1),
    "kick without descriptor": (wire.SET_VRING_KICK, u64(0), 0),
    "kick by polling": (wire.SET_VRING_KICK, u64(1 << 8), 0),
    "no descriptor, and one": (wire.SET_VRING_CALL, u64(1 << 8), 1),
    "unknown bits": (wire.SET_VRING_CALL, u64(1 << 63), 1),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_ends_the_device(vmm: Vmm, name: str) -> None:
    request, payload, count = BAD[name]
    with pytest.raises(Violation):
        vmm.request(request, payload, [vmm.file] * count)


STOPPED = {
    "base": (wire.SET_VRING_BASE, u32(0, 1 << 16)),
    "logged": (wire.SET_VRING_ADDR, addresses(0, LOW_USER, LOW_USER, LOW_USER, flags=1)),
}


@pytest.mark.parametrize("name", STOPPED)
def test_a_bad_setting_of_a_stopped_queue_ends_the_device(vmm: Vmm, name: str) -> None:
    vmm.stop()
    with pytest.raises(Violation):
        vmm.request(*STOPPED[name])


@pytest.mark.parametrize("size", [0, 3, 2048, 1 << 31])
def test_a_queue_has_a_power_of_two_of_entries(vmm: Vmm, size: int) -> None:
    vmm.stop()
    vmm.request(wire.SET_VRING_NUM, u32(0, size))
    with pytest.raises(Violation, match="entries"):
        vmm.request(wire.SET_VRING_KICK, u64(0), [vmm.kicks[0]])


END = LOW_USER + MIB


@pytest.mark.parametrize(
    "places",
    [
        (LOW_USER + 8, LOW_USER, LOW_USER),  # alignment: 16, 4 and 2 bytes
        (LOW_USER, LOW_USER + 2, LOW_USER),
        (LOW_USER, LOW_USER, LOW_USER + 1),
        (END - 16 * SIZE + 16, LOW_USER, LOW_USER),
        (LOW_USER, END - 8 * SIZE, LOW_USER),
        (LOW_USER, LOW_USER, END - 2 * SIZE - 2),
        (0, LOW_USER, LOW_USER),
        (2**64 - 16, LOW_USER, LOW_USER),
    ],
)
def test_a_queue_lies_aligned_within_memory(vmm: Vmm, places: tuple[int, int, int]) -> None:
    vmm.stop()
    vmm.request(wire.SET_VRING_ADDR, addresses(0, *places))
    with pytest.raises(Violation, match=r"aligned|not all memory"):
        vmm.request(wire.SET_VRING_KICK, u64(0), [vmm.kicks[0]])


def test_memory_that_leaves_a_running_queue_out_ends_the_device(vmm: Vmm) -> None:
    with pytest.raises(Violation, match="not all memory"):
        vmm.request(wire.SET_MEM_TABLE, table((0, PAGE, LOW_USER, 0)), [vmm.file])


def test_memory_is_a_file_and_nothing_else(vmm: Vmm) -> None:
    with open("/dev/zero", "r+b", 0) as device, pytest.raises(Violation, match="no file"):
        vmm.request(wire.SET_MEM_TABLE, table(LOW), [device.fileno()])


@pytest.mark.parametrize("flags", [0, 2, wire.VERSION | wire.REPLY])
def test_flags_are_a_requests_of_version_1(vmm: Vmm, flags: int) -> None:
    vmm.raw(u32(wire.GET_FEATURES, flags, 0))
    with pytest.raises(Violation, match="flags"):
        vmm.step()


def test_a_payload_is_bounded(vmm: Vmm) -> None:
    vmm.raw(u32(wire.GET_FEATURES, wire.VERSION, 1 << 31))
    with pytest.raises(Violation, match="payload of 2147483648 bytes"):
        vmm.step()


@pytest.mark.parametrize("cut", [5, 16])
def test_a_request_cut_short_ends_the_device(vmm: Vmm, cut: int) -> None:
    vmm.raw((u32(wire.SET_FEATURES, wire.VERSION, 8) + u64(0))[:cut])
    vmm.control.shutdown(socket.SHUT_WR)
    with pytest.raises(Violation, match="within a message"):
        vmm.step()


def test_a_request_that_stalls_ends_the_device(vmm: Vmm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_SECONDS", 0.05)
    vmm.raw(u32(wire.SET_FEATURES, wire.VERSION, 8))
    with pytest.raises(Violation, match="stalled"):
        vmm.step()


def test_a_request_that_comes_a_byte_at_a_time_ends_the_device(
    vmm: Vmm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_SECONDS", 0.5)
    over = threading.Event()

    def slowly() -> None:
        with contextlib.suppress(OSError):
            while not over.wait(0.1):
                vmm.raw(b"\0")

    # First, or the device finds nothing to do; of more bytes than come while it is kept from it.
    vmm.raw(u32(wire.SET_FEATURES, wire.VERSION, wire.MAX_PAYLOAD))
    thread = threading.Thread(target=slowly)
    thread.start()
    try:
        with pytest.raises(Violation, match="stalled"):
            vmm.step()
    finally:
        over.set()
        thread.join()


def test_a_vmm_that_takes_no_answers_ends_the_device(
    vmm: Vmm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_SECONDS", 0.05)
    with pytest.raises(Violation, match="takes no answer"):
        for _ in range(10_000):
            vmm.request(wire.GET_FEATURES)


def test_more_descriptors_than_a_message_has_end_the_device(vmm: Vmm) -> None:
    with pytest.raises(Violation, match="more descriptors than a message has"):
        vmm.request(wire.SET_MEM_TABLE, table(LOW), [vmm.file] * 9)


def test_a_kick_that_cannot_be_waited_for_ends_the_device(vmm: Vmm) -> None:
    vmm.stop()
    with pytest.raises(Violation, match="kick descriptor"):
        vmm.request(wire.SET_VRING_KICK, u64(0), [vmm.file])


def test_a_kick_that_has_ended_ends_the_device(vmm: Vmm) -> None:
    vmm.stop()
    reader, writer = os.pipe()
    vmm.request(wire.SET_VRING_KICK, u64(0), [reader])
    os.close(reader)
    os.close(writer)
    with pytest.raises(Violation, match="has ended"):
        vmm.step()


def test_a_call_that_nobody_hears_ends_the_device(vmm: Vmm) -> None:
    reader, writer = os.pipe()
    vmm.request(wire.SET_VRING_CALL, u64(0), [writer])
    os.close(reader)
    os.close(writer)
    with vmm.client(b"CONNECT 1\n"), pytest.raises(Violation, match="call descriptor"):
        vmm.step(2)


def test_a_guest_without_interrupts_is_served(vmm: Vmm) -> None:
    for number in range(2):
        vmm.request(wire.SET_VRING_CALL, u64(number | 1 << 8))
    sock, _ = vmm.connected()
    sock.close()


def test_a_queue_starts_only_with_version_1(vmm: Vmm) -> None:
    vmm.stop()
    vmm.request(wire.SET_FEATURES, u64(1 << 30))
    with pytest.raises(Violation, match="VERSION_1"):
        vmm.request(wire.SET_VRING_KICK, u64(0), [vmm.kicks[0]])


def test_a_queue_that_is_not_enabled_is_left_alone(vmm: Vmm) -> None:
    vmm.request(wire.SET_VRING_ENABLE, u32(0, 0))
    with vmm.client(b"CONNECT 1\n"):
        assert vmm.receive() == []
        vmm.request(wire.SET_VRING_ENABLE, u32(0, 1))
        assert len(vmm.receive()) == 1


def test_errors_of_a_queue_need_no_descriptor(vmm: Vmm) -> None:
    vmm.request(wire.SET_VRING_ERR, u64(0), [vmm.kicks[0]])
    vmm.request(wire.SET_VRING_ERR, u64(1 << 8))


@pytest.mark.parametrize("cid", [0, 2, 0xFFFFFFFF, 1 << 40])
def test_a_cid_is_a_guests(cid: int) -> None:
    left, right = socket.socketpair()
    with left, right, pytest.raises(ValueError, match="cid"):
        Device(left, cid)


def test_a_path_leaves_room_for_a_port(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    with left, right, pytest.raises(ValueError, match="shorter"):
        Device(left, CID, None, f"/{'x' * 100}")
