"""The device: one loop over the VMM's socket, the queues' kicks and the unix sockets."""

import select
import socket
import time
from collections.abc import Mapping

from agentd.vsock.control import VhostControl
from agentd.vsock.hybrid import GuestPort, Host
from agentd.vsock.muxer import Muxer, MuxerLimits
from agentd.vsock.poller import Poller
from agentd.vsock.vring import Vring


class Device:
    """A guest's vsock device.

    ``control``: the connected vhost-user socket, QEMU at its other end.
    ``cid``: the guest's, 3 or more.
    ``listener``: a listening unix socket for host clients, which send ``CONNECT <port>`` and get
    ``OK <number>``; what follows is the stream. Without it the host cannot connect.
    ``guest_path``: a guest's connection to port P of CID 2 goes to the unix socket
    ``<guest_path>_P``; None refuses them, but those of ``guest_places``, paths of sockets by port.

    Owns both sockets. Raises ValueError for a CID or path that cannot be.
    """

    def __init__(
        self,
        control: socket.socket,
        cid: int,
        listener: socket.socket | None = None,
        guest_path: str | None = None,
        limits: MuxerLimits | None = None,
        guest_places: Mapping[int, str] | None = None,
    ) -> None:
        if not 3 <= cid < (1 << 32) - 1:
            raise ValueError(f"cid {cid} is no guest's; use 3 or more")
        limits = limits or MuxerLimits()
        guest = GuestPort(guest_path, guest_places)
        self._ended = False
        self._wait: float | None = None
        self._sock = control
        self._poller = Poller()
        self._muxer = Muxer(cid, self._poller, guest.dial, limits)
        self._receive = Vring(self._poller, writable=True)
        self._send = Vring(self._poller, writable=False)
        self._control = VhostControl(
            control, cid, [self._receive, self._send], rebooted=self._muxer.reset
        )
        self._host = Host(listener, self._poller, self._muxer.open, limits) if listener else None
        self._poller.watch(control.fileno(), select.EPOLLIN, self._requested)

    def run(self) -> None:
        """Serve until the VMM closes the control socket; everything is closed then.

        Raises Violation when the guest or the VMM broke the protocol: the device has ended too.
        """
        try:
            while self.turn():
                pass
        finally:
            self.close()

    def turn(self, longest: float | None = None) -> bool:
        """Serve what is ready, after ``longest`` seconds of waiting at most; False at the
        end. For run(), and for a loop of somebody else's. Raises Violation."""
        waits = [wait for wait in (self._wait, longest) if wait is not None]
        self._poller.turn(min(waits) if waits else None)
        more = not self._ended and self._move()
        self._wait = 0.0 if more else self._expire()
        self._poller.bury()
        return not self._ended

    def close(self) -> None:
        """Close every socket and descriptor, and forget the guest's memory; also after run()."""
        if self._sock.fileno() < 0:
            return
        if self._host:
            self._host.close()
        self._muxer.close()
        self._receive.close()
        self._send.close()
        self._control.close()
        self._poller.close()
        self._sock.close()

    def _requested(self, _: int) -> None:
        self._ended = not self._control.serve()

    def _move(self) -> bool:
        """Packets both ways; True when the guest has sent more than one turn's worth."""
        receive, send = self._receive.ring, self._send.ring
        if receive is None or send is None:
            return False
        more = self._muxer.take(send)
        self._send.publish()
        self._muxer.fill(receive)
        self._receive.publish()
        return more

    def _expire(self) -> float | None:
        """Seconds until the next deadline."""
        now = time.monotonic()
        deadlines = [self._muxer.expire(now), self._host.expire(now) if self._host else None]
        ahead = [deadline for deadline in deadlines if deadline is not None]
        return max(0.0, min(ahead) - now) if ahead else None
