"""One of the two virtqueues as the VMM configures it: addresses, descriptors, on or off."""

import os
import select

from agentd.vsock.errors import Violation
from agentd.vsock.memory import Memory
from agentd.vsock.poller import Poller
from agentd.vsock.ring import DescriptorRing, Layout

_ONE = (1).to_bytes(8, "little")  # what an eventfd is written, eventfd(2)


class Vring:
    """``ring`` is there while the queue runs: kicked off by SET_VRING_KICK, and enabled."""

    def __init__(self, poller: Poller, *, writable: bool) -> None:
        self._poller = poller
        self._writable = writable
        self._kick = -1
        self._call = -1
        self._stopped: tuple[Layout, int] | None = None
        self._running: DescriptorRing | None = None
        self._enabled = False
        self.layout = Layout(0, 0, 0, 0)
        self.base = 0

    @property
    def ring(self) -> DescriptorRing | None:
        return self._running if self._enabled else None

    @property
    def running(self) -> bool:
        return self._running is not None

    def start(self, memory: Memory, kick: int) -> bool:
        """Owns ``kick``. False when it does not go on where it was last stopped: a new driver.

        Raises Violation.
        """
        self._replace_kick(kick)
        self._running = DescriptorRing(memory, self.layout, self.base, writable=self._writable)
        return self._stopped in (None, (self.layout, self.base))

    def remap(self, memory: Memory) -> None:
        """Takes a memory table that changed under a running ring. Raises Violation."""
        if self._running is not None:
            self._running.publish()
            self._running = DescriptorRing(
                memory, self.layout, self._running.next, writable=self._writable
            )

    def stop(self) -> int:
        """Return the index of the next available entry, where a later start would go on."""
        if self._running is not None:
            self._running.publish()
            self.base = self._running.next
            self._stopped = (self.layout, self.base)
        self._replace_kick(-1)
        self._running = None
        self._enabled = False
        return self.base

    def enable(self, on: bool) -> None:
        self._enabled = on

    def call_by(self, fd: int) -> None:
        """Owns ``fd``; -1 is a guest that wants no interrupts."""
        if self._call >= 0:
            os.close(self._call)
        self._call = fd
        if fd < 0:
            return
        try:
            os.set_blocking(fd, False)
        except OSError as error:
            raise Violation(f"a virtqueue's call descriptor: {error.strerror}") from error

    def publish(self) -> None:
        """Show the guest what is done, and always say so: its wish to be left alone cannot be read
        in time without a memory barrier. Raises Violation."""
        if self._running is None or not self._running.publish() or self._call < 0:
            return
        try:
            os.write(self._call, _ONE)
        except BlockingIOError:  # as many calls as an eventfd counts are pending
            return
        except OSError as error:
            raise Violation(f"a virtqueue's call descriptor: {error.strerror}") from error

    def close(self) -> None:
        self._running = None
        self._replace_kick(-1)
        self.call_by(-1)

    def _replace_kick(self, fd: int) -> None:
        if self._kick >= 0:
            self._poller.forget(self._kick)
            os.close(self._kick)
        self._kick = fd
        if fd < 0:
            return
        try:
            os.set_blocking(fd, False)
            self._poller.watch(fd, select.EPOLLIN, self._kicked)
        except OSError as error:
            raise Violation(f"a virtqueue's kick descriptor: {error.strerror}") from error

    def _kicked(self, _: int) -> None:
        try:
            count = os.read(self._kick, 8)
        except BlockingIOError:
            return
        except OSError as error:
            raise Violation(f"a virtqueue's kick descriptor: {error.strerror}") from error
        if not count:
            raise Violation("a virtqueue's kick descriptor has ended")
