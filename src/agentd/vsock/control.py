"""The VMM's side: vhost-user requests, checked for size and descriptors, then carried out."""

import os
import socket
import struct
from collections.abc import Callable

from agentd.vsock import wire
from agentd.vsock.errors import Violation
from agentd.vsock.memory import Memory, Region
from agentd.vsock.vring import Vring
from agentd.vsock.wire import VhostMessage

_VERSION_1 = 1 << 32
_PROTOCOL_FEATURES = 1 << 30
# Neither EVENT_IDX, which needs memory barriers, nor INDIRECT_DESC: a second table to check.
FEATURES = _VERSION_1 | _PROTOCOL_FEATURES
PROTOCOL_FEATURES = 1 << 0 | 1 << 3 | 1 << 9  # MQ, REPLY_ACK, CONFIG
QUEUES = 2  # receive, send; the event queue stays in QEMU

_INDEX = 0xFF
_NO_FD = 1 << 8
_CID = struct.Struct("<Q")  # the configuration space, virtio 1.2, section 5.10.4
_ACKNOWLEDGED = wire.U64.pack(0)


class VhostControl:
    """``rebooted()`` is called when the guest's driver begins anew."""

    def __init__(
        self, sock: socket.socket, cid: int, vrings: list[Vring], rebooted: Callable[[], None]
    ) -> None:
        self._sock = sock
        self._cid = cid
        self._vrings = vrings
        self._rebooted = rebooted
        self._memory = Memory()
        self._features = 0
        self._protocol_features = 0

    def serve(self) -> bool:
        """Serve one request; False at the end of the stream. Raises Violation."""
        message = wire.receive(self._sock)
        if message is None:
            return False
        try:
            answer = self._handle(message)
        finally:
            wire.close_all(message.fds)  # those that a handler took are out of the list
        if answer is None and message.needs_reply:
            answer = _ACKNOWLEDGED
        if answer is not None:
            wire.reply(self._sock, message.request, answer)
        return True

    def close(self) -> None:
        self._memory.close()

    def _handle(self, message: VhostMessage) -> bytes | None:
        known = _REQUESTS.get(message.request)
        if known is None:
            raise Violation(f"vhost-user request {message.request} is not supported")
        handler, size, fds = known
        if size is not None and len(message.payload) != size:
            raise Violation(f"vhost-user request {message.request} of {len(message.payload)} bytes")
        if len(message.fds) > fds:
            raise Violation(f"vhost-user request {message.request} with too many descriptors")
        return handler(self, message)

    # --- what the device is ---

    def _get_features(self, _: VhostMessage) -> bytes:
        return wire.U64.pack(FEATURES)

    def _set_features(self, message: VhostMessage) -> None:
        self._features = _subset(message, FEATURES)

    def _get_protocol_features(self, _: VhostMessage) -> bytes:
        return wire.U64.pack(PROTOCOL_FEATURES)

    def _set_protocol_features(self, message: VhostMessage) -> None:
        self._protocol_features = _subset(message, PROTOCOL_FEATURES)

    def _get_queue_num(self, _: VhostMessage) -> bytes:
        return wire.U64.pack(QUEUES)

    def _get_config(self, message: VhostMessage) -> bytes:
        if len(message.payload) < wire.CONFIG.size:
            raise Violation("GET_CONFIG without its header")
        offset, size, flags = wire.CONFIG.unpack_from(message.payload)
        config = _CID.pack(self._cid)
        if offset + size > len(config) or len(message.payload) != wire.CONFIG.size + size:
            return b""  # how an error is said
        return wire.CONFIG.pack(offset, size, flags) + config[offset : offset + size]

    def _ignore(self, _: VhostMessage) -> None:
        """There is but one owner, and errors of a queue end the device."""

    # --- memory ---

    def _set_mem_table(self, message: VhostMessage) -> None:
        payload = message.payload
        if len(payload) < wire.MEM_TABLE.size:
            raise Violation("SET_MEM_TABLE without its header")
        count, _ = wire.MEM_TABLE.unpack_from(payload)
        if len(payload) != wire.MEM_TABLE.size + count * wire.MEM_REGION.size:
            raise Violation(f"SET_MEM_TABLE of {count} regions in {len(payload)} bytes")
        if len(message.fds) != count:
            raise Violation(f"SET_MEM_TABLE of {count} regions, {len(message.fds)} descriptors")
        regions = []
        for guest, size, user, offset in wire.MEM_REGION.iter_unpack(
            payload[wire.MEM_TABLE.size :]
        ):
            regions.append(Region(guest, size, user, offset))
        memory = Memory.map(regions, message.fds)
        old, self._memory = self._memory, memory
        for vring in self._vrings:
            vring.remap(memory)
        old.close()

    # --- queues ---

    def _set_vring_num(self, message: VhostMessage) -> None:
        vring, number = self._idle(message)
        vring.layout = vring.layout._replace(size=number)

    def _set_vring_base(self, message: VhostMessage) -> None:
        vring, number = self._idle(message)
        if number > 0xFFFF:
            raise Violation(f"virtqueue base {number}")
        vring.base = number

    def _set_vring_addr(self, message: VhostMessage) -> None:
        index, flags, descriptors, used, available, _ = wire.VRING_ADDR.unpack(message.payload)
        vring = self._vring(index)
        if vring.running or flags:
            raise Violation(f"SET_VRING_ADDR with flags {flags:#x}, or of a running virtqueue")
        vring.layout = vring.layout._replace(
            descriptors=descriptors, available=available, used=used
        )

    def _get_vring_base(self, message: VhostMessage) -> bytes:
        index, _ = wire.VRING_STATE.unpack(message.payload)
        return wire.VRING_STATE.pack(index, self._vring(index).stop())

    def _set_vring_enable(self, message: VhostMessage) -> None:
        index, on = wire.VRING_STATE.unpack(message.payload)
        self._vring(index).enable(bool(on))

    def _set_vring_kick(self, message: VhostMessage) -> None:
        vring, fd = self._descriptor(message)
        if fd < 0:
            raise Violation("a virtqueue without a kick descriptor")
        if vring.running or not self._features & _VERSION_1:
            os.close(fd)
            raise Violation("SET_VRING_KICK of a running virtqueue, or without VERSION_1")
        if not vring.start(self._memory, fd):
            self._rebooted()
        if not self._features & _PROTOCOL_FEATURES:
            vring.enable(True)

    def _set_vring_call(self, message: VhostMessage) -> None:
        vring, fd = self._descriptor(message)
        vring.call_by(fd)

    def _vring(self, index: int) -> Vring:
        if index >= len(self._vrings):
            raise Violation(f"virtqueue {index} of {len(self._vrings)}")
        return self._vrings[index]

    def _idle(self, message: VhostMessage) -> tuple[Vring, int]:
        index, number = wire.VRING_STATE.unpack(message.payload)
        vring = self._vring(index)
        if vring.running:
            raise Violation(f"vhost-user request {message.request} of a running virtqueue")
        return vring, number

    def _descriptor(self, message: VhostMessage) -> tuple[Vring, int]:
        """Return the queue, and the message's descriptor, now the caller's; or -1."""
        (value,) = wire.U64.unpack(message.payload)
        if value & ~(_INDEX | _NO_FD):
            raise Violation(f"vhost-user request {message.request} of virtqueue {value:#x}")
        vring = self._vring(value & _INDEX)
        if bool(value & _NO_FD) == bool(message.fds):
            raise Violation(f"vhost-user request {message.request} and its descriptor disagree")
        return vring, message.fds.pop() if message.fds else -1


def _subset(message: VhostMessage, offered: int) -> int:
    value: int = wire.U64.unpack(message.payload)[0]
    if value & ~offered:
        raise Violation(f"features {value & ~offered:#x} were not offered")
    return value


# Request -> what carries it out, the payload's size (None: it says itself), descriptors at most.
_REQUESTS: dict[
    int, tuple[Callable[[VhostControl, VhostMessage], bytes | None], int | None, int]
] = {
    wire.GET_FEATURES: (VhostControl._get_features, 0, 0),
    wire.SET_FEATURES: (VhostControl._set_features, 8, 0),
    wire.SET_OWNER: (VhostControl._ignore, 0, 0),
    wire.RESET_OWNER: (VhostControl._ignore, 0, 0),
    wire.SET_MEM_TABLE: (VhostControl._set_mem_table, None, wire.MAX_FDS),
    wire.SET_VRING_NUM: (VhostControl._set_vring_num, 8, 0),
    wire.SET_VRING_ADDR: (VhostControl._set_vring_addr, 40, 0),
    wire.SET_VRING_BASE: (VhostControl._set_vring_base, 8, 0),
    wire.GET_VRING_BASE: (VhostControl._get_vring_base, 8, 0),
    wire.SET_VRING_KICK: (VhostControl._set_vring_kick, 8, 1),
    wire.SET_VRING_CALL: (VhostControl._set_vring_call, 8, 1),
    wire.SET_VRING_ERR: (VhostControl._ignore, 8, 1),
    wire.GET_PROTOCOL_FEATURES: (VhostControl._get_protocol_features, 0, 0),
    wire.SET_PROTOCOL_FEATURES: (VhostControl._set_protocol_features, 8, 0),
    wire.GET_QUEUE_NUM: (VhostControl._get_queue_num, 0, 0),
    wire.SET_VRING_ENABLE: (VhostControl._set_vring_enable, 8, 0),
    wire.GET_CONFIG: (VhostControl._get_config, None, 0),
}
