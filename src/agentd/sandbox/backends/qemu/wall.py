"""A running virtual machine, seen from the host."""

import contextlib
import os
import socket
import threading

import msgspec

from agentd.linux.cgroup import Group
from agentd.model import typed
from agentd.model.cause import Cause
from agentd.model.enforcement import Enforcement
from agentd.model.errors import SandboxError
from agentd.sandbox.backends.qemu.plan import Machine, ceiling
from agentd.sandbox.backends.qemu.process import Process
from agentd.sandbox.backends.vm import states
from agentd.sandbox.backends.vm.ceiling import Ceiling
from agentd.sandbox.backends.vm.foreign import Foreign
from agentd.sandbox.backends.vm.handshake import tell

STATE, RECORD = "memory.state", "machine.json"
# The first stream waits for the guest's driver.
_STREAM_SECONDS = 30.0


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``machine.json``: what a state fits, and the digest of its file."""

    format: int
    image: str
    monitor: str
    machine: Machine
    digest: str


class QemuWall:
    """Pausable; its snapshots hold the memory, so that processes go on where they were.

    A snapshot ends every connection to the agent, tunnels and attached commands among them: the
    vsock device cannot be part of one. What listens in the guest goes on listening. The same is
    true of the machine that the snapshot was taken of.
    """

    passes_descriptors = False
    workspace = "/workspace"
    fidelity = "memory"

    def __init__(
        self,
        process: Process,
        group: Group | None,
        enforcement: Enforcement,
        record: Record,
        *,
        serial: bool,
        shares: bool,
    ) -> None:
        """``record.digest`` is empty. ``serial``: over the serial port, one stream at a time.
        ``shares``: it has directories of the host's.
        """
        self._shares = shares
        self.enforcement = enforcement
        self.pid = process.pid
        self._process = process
        self._group = group
        self._record = record
        self._over_serial = serial
        self._ceiling = Ceiling(group, ceiling(record.machine.memory))
        self._stream: socket.socket | None = None
        self._lock = threading.RLock()
        self._paused = False
        self._ended = False

    @property
    def _pidfd(self) -> int:
        return self._process.pidfd

    def open_stream(self) -> socket.socket:
        if self._paused:
            raise SandboxError("the virtual machine is paused", remediation="resume it first")
        if not self._over_serial:
            return self._process.vsock_stream(_STREAM_SECONDS)
        with self._lock:
            if self._stream is not None and self._stream.fileno() >= 0:
                raise SandboxError(
                    "the serial port carries one stream at a time, and that is in use",
                    remediation="end what runs first, or use an image whose kernel has vsock",
                )
            self._stream = self._process.serial_stream(_STREAM_SECONDS)
            return self._stream

    def counters(self) -> dict[str, int]:
        """Of QEMU's own group; the guest's limits are counted by the agent."""
        if self._group is None or self._ended:
            return {}
        return {name: n for name, n in self._group.counters().items() if name == "oom"}

    def usage(self) -> dict[str, int]:
        return self._group.usage() if self._group is not None and not self._ended else {}

    def alive(self) -> bool:
        return not self.wait(0)

    def wait(self, timeout: float | None = None) -> bool:
        return self._process.wait(timeout)

    def ending(self) -> Cause:
        return self._process.ending().cause()

    def kill(self) -> None:
        # Not under the lock: it ends what holds that.
        self._process.end()
        self._ended = True
        if self._group is not None:
            with contextlib.suppress(OSError):
                self._group.remove()

    def save(self) -> dict[str, object]:
        return {"pid": self.pid, "group": self._group.name if self._group else None}

    def pause(self) -> None:
        with self._lock:
            self._process.execute("stop")
            self._paused = True

    def resume(self) -> None:
        with self._lock:
            self._process.execute("cont")
            self._paused = False
            if not self._over_serial:  # there the stream in use has the only port
                self._tell("sys.clock")  # it stood still, too

    def snapshot(self, folder: str) -> None:
        """What runs in the guest is stopped before and goes on after: a copy must not run it
        before it has random numbers, a clock and an identity of its own.
        """
        with self._lock:
            if self._paused:
                raise SandboxError(
                    "a paused virtual machine cannot be snapshotted", remediation="resume it first"
                )
            if self._shares:
                raise SandboxError(
                    "a virtual machine with mounts cannot be snapshotted: its state does not hold"
                    " what is the host's",
                    remediation="copy the files in instead of mounting them",
                )
            size = self._record.machine.memory
            self._ceiling.check_room(folder, min(size, self.usage().get("memory_bytes", size)))
            self._tell("sys.freeze")
            try:
                with self._ceiling.raised(size):
                    self._save(folder)
            finally:
                self._tell("sys.clock", "sys.thaw")

    def _tell(self, *operations: str) -> None:
        """Operations of the agent's over the serial port, whose stream in use ends for it."""
        if self._stream is not None:
            with contextlib.suppress(OSError):  # closed already
                self._stream.shutdown(socket.SHUT_RDWR)
            self._stream = None
        tell(self._process.serial_stream(_STREAM_SECONDS), operations, _STREAM_SECONDS)

    def _save(self, folder: str) -> None:
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
        try:
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
        except OSError as error:
            raise SandboxError("the snapshot cannot be written", cause=str(error)) from error


class ForeignWall(Foreign, QemuWall):
    """Of a machine whose agent is not ours."""


def read_record(folder: str) -> tuple[Record, int]:
    """What a snapshot says of itself, and its verified state, the caller's to close.

    Raises SandboxError.
    """
    try:
        with open(f"{folder}/{RECORD}", "rb") as file:
            record = typed.decoder(Record).decode(file.read(1 << 16))
        fd = os.open(f"{folder}/{STATE}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (OSError, msgspec.MsgspecError) as error:
        raise SandboxError(f"{folder} holds no snapshot of qemu", cause=str(error)) from error
    if states.digest(fd) != record.digest:
        os.close(fd)
        raise SandboxError(f"the snapshot in {folder} is damaged", remediation="take it again")
    return record, fd
