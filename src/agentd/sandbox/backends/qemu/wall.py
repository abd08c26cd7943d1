"""A running virtual machine, seen from the host."""

import contextlib
import os
import socket
from collections.abc import Callable

import msgspec

from agentd.linux.cgroup import Group
from agentd.model.enforcement import Enforcement
from agentd.model.errors import SandboxError
from agentd.model.system import os_errors_as
from agentd.sandbox.backends.qemu.plan import ceiling
from agentd.sandbox.backends.qemu.process import QemuProcess
from agentd.sandbox.backends.qemu.record import RECORD, STATE, MachineRecord
from agentd.sandbox.backends.vm import states
from agentd.sandbox.backends.vm.foreign import Foreign
from agentd.sandbox.backends.vm.image import DiskRoot
from agentd.sandbox.backends.vm.machine import STREAM_SECONDS, MachineWall


class QemuWall(MachineWall[QemuProcess]):
    """Its snapshots hold the memory, so that processes go on where they were.

    A snapshot ends every connection to the agent, tunnels and attached commands among them: the
    vsock device cannot be part of one. What listens in the guest goes on listening. The same is
    true of the machine that the snapshot was taken of.
    """

    #: The digest of the OCI image that it started of; empty without one.
    image = ""
    #: What that runs where nobody says what, and where commands begin.
    command: tuple[str, ...] = ()
    workdir: str | None = None

    def __init__(
        self,
        process: QemuProcess,
        group: Group | None,
        enforcement: Enforcement,
        record: MachineRecord,
        *,
        serial: bool,
        shares: bool,
    ) -> None:
        """``record.digest`` is empty. ``serial``: over the serial port, one stream at a time.
        ``shares``: it has directories of the host's.
        """
        memory = record.machine.memory
        super().__init__(
            process, group, enforcement, pid=process.pid, memory=memory, ceiling=ceiling(memory)
        )
        self._shares = shares
        self._on_end: Callable[[], None] = lambda: None
        self._record = record
        self._over_serial = serial
        self._stream: socket.socket | None = None

    def attach_image(self, root: DiskRoot, workdir: str | None) -> None:
        """Have the image that it started of released once it has ended."""
        self.image, self.command = root.image.digest, root.image.config.run.command
        self.workdir = workdir
        self._on_end = root.lease.close

    def kill(self) -> None:
        try:
            super().kill()
        finally:
            self._on_end()

    def open_stream(self) -> socket.socket:
        self._check_running()
        if not self._over_serial:
            return self._process.vsock_stream(STREAM_SECONDS)
        with self._changing:
            if self._stream is not None and self._stream.fileno() >= 0:
                raise SandboxError(
                    "the serial port carries one stream at a time, and that is in use",
                    remediation="end what runs first, or use an image whose kernel has vsock",
                )
            self._stream = self._own_stream()
            return self._stream

    def counters(self) -> dict[str, int]:
        """Return the counters of QEMU's own group; the agent counts those of the guest's limits."""
        return {name: n for name, n in super().counters().items() if name == "oom"}

    def save(self) -> dict[str, object]:
        return {"pid": self.pid, "group": self._group.name if self._group else None}

    def pause(self) -> None:
        with self._changing:
            self._process.execute("stop")
            self._paused = True

    def resume(self) -> None:
        with self._changing:
            self._process.execute("cont")
            self._paused = False
            if not self._over_serial:  # there the stream in use has the only port
                self._tell("sys.clock")  # it stood still, too

    def _own_stream(self) -> socket.socket:
        return self._process.serial_stream(STREAM_SECONDS)

    def _check_snapshot(self, folder: str) -> None:
        if self._shares:
            raise SandboxError(
                "a virtual machine with mounts cannot be snapshotted: its state does not hold"
                " what is the host's",
                remediation="copy the files in instead of mounting them",
            )
        size = min(self._memory, self.usage().get("memory_bytes", self._memory))
        self._ceiling.check_room(folder, size)

    def _tell(self, *operations: str) -> None:
        """Over the serial port, whose stream in use ends for it."""
        if self._stream is not None:
            with contextlib.suppress(OSError):  # closed already
                self._stream.shutdown(socket.SHUT_RDWR)
            self._stream = None
        super()._tell(*operations)

    def _write_snapshot(self, folder: str) -> None:
        if self._over_serial:
            self._write(folder)
            return
        self._process.detach_vsock()
        try:
            self._write(folder)
        finally:
            self._process.attach_vsock()

    def _write(self, folder: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os_errors_as(SandboxError, "the snapshot cannot be written"):
            fd = os.open(f"{folder}/{STATE}", flags, 0o600)
            try:
                self._process.save(fd)
                self._ceiling.keeps(fd)
                digest = states.digest(fd)
            finally:
                os.close(fd)
            record = msgspec.structs.replace(self._record, digest=digest)
            with open(f"{folder}/{RECORD}", "xb") as file:
                file.write(msgspec.json.encode(record))


class ForeignQemuWall(Foreign, QemuWall):
    """The wall of a machine whose agent is not ours."""
