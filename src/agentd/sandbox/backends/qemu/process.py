"""One QEMU process, cold or from a state, and the vsock device beside it."""

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from agentd.linux import cgroup, dialled
from agentd.model.errors import AgentdError, BackendLost, SandboxError
from agentd.model.result import CauseCode
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.qemu import plan as plans
from agentd.sandbox.backends.qemu import shares
from agentd.sandbox.backends.qemu.boot import Boot, StateRefused, open_kvm
from agentd.sandbox.backends.qemu.plan import QemuMachine
from agentd.sandbox.backends.qemu.qmp import Qmp, QmpError
from agentd.sandbox.backends.qemu.shares import Share
from agentd.sandbox.backends.qemu.sockets import NamelessSockets
from agentd.sandbox.backends.vm import ending, states, streams
from agentd.sandbox.backends.vm.ending import Ending, MachineEnded
from agentd.sandbox.backends.vm.image import SERIAL
from agentd.sandbox.backends.vm.machine import MonitorProcess
from agentd.sandbox.backends.vm.supervisor import Keeper
from agentd.transport.text import safe_text

# Under software emulation, on a machine that is busy with other things.
_START_SECONDS = 60.0
_UNPLUG_SECONDS = 30.0
_LOOK_SECONDS = 0.01  # for what QEMU has said by now
_FINAL_SECONDS, _FINAL_POLL = 10.0, 0.005
_END_SECONDS = 10.0
# A socket closes a moment before the process that held it has ended, and the keeper lets a machine
# outlive its device and helpers by ORPHAN_SECONDS.
_DYING_SECONDS = 2.0
_BACKLOG = 128
_DEVICE, _NETWORK = "vsock", "network"
_PANIC = re.compile(r"Kernel panic - not syncing: ([^\r\n]{1,200})")
_CAPABILITIES = [
    {"capability": "events", "state": True},
    # Each page has its place in the file, and those of zeroes none (QEMU 9.0).
    {"capability": "mapped-ram", "state": True},
]
# Bytes a second: the state goes to a file, not over a network that others use.
_BANDWIDTH = 1 << 40


class QemuProcess(MonitorProcess):
    """Raises SandboxError, and BackendLost with the reason when the machine has ended."""

    def __init__(
        self, keeper: Keeper, number: int, block: Block | None, group: cgroup.Group | None
    ) -> None:
        super().__init__(group)
        self._keeper = keeper
        self._number = number
        # Its ids are this machine's alone: whoever breaks out of it cannot touch the next.
        self._block = block
        self._uid = None if block is None else block.id
        self._lock = threading.Lock()  # around what changes the device
        self._end_lock = threading.Lock()
        self._devices = 0
        self._leaving = False  # the guest was asked to let go of the device, and has not yet
        self._memory = 0  # the machine's, in bytes
        self._sockets = NamelessSockets()
        self._listener: socket.socket | None = None
        self._qmp: Qmp | None = None
        self.controls: dict[str, list[str]] = {}
        self.pid = 0

    # --- starting ---

    def start(
        self, machine: QemuMachine, boot: Boot, *, incoming: bool, net: bool, disk: int | None
    ) -> None:
        """Returns once QEMU answers; it boots, or waits for ``load`` where ``incoming``. ``disk``
        is an image's, which the state to come knows."""
        self._memory = machine.memory
        argv = plans.command(machine, plans.kernel_arguments(), boot.program)
        if incoming:
            argv += ["-incoming", "defer"]
        if disk is not None:
            argv += plans.disk_arguments(SERIAL)
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as passed:
            undo = passed.enter_context(contextlib.ExitStack())
            undo.callback(ours.close)
            passed.callback(theirs.close)
            serial = passed.enter_context(self._listen("serial"))
            fds = {"qmp": theirs.fileno(), "serial": serial.fileno()}
            if disk is not None:
                fds["disk"] = disk
            for name, path in (("kernel", boot.kernel), ("initramfs", boot.initramfs)):
                fds[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                passed.callback(os.close, fds[name])
            if machine.accel == "kvm":
                fds["kvm"] = open_kvm()
                passed.callback(os.close, fds["kvm"])
            started = self._keeper.start(
                self._number,
                argv,
                fds,
                readable=("kernel", "initramfs"),
                net=net,
                group=self._group,
                uid=self._uid,
            )
            self.pid, self.pidfd = started.pid, started.pidfd
            self.controls["monitor"] = started.controls
            undo.pop_all()
        with self._explained():
            self._qmp = Qmp(ours, _START_SECONDS)

    def load(self, state: int) -> None:
        """Go on from the state in an open file; the guest runs then. Raises StateRefused."""
        fd = os.open(f"/proc/self/fd/{state}", os.O_RDONLY | os.O_CLOEXEC)  # an offset of its own
        try:
            self._migrate("migrate-incoming", fd)
        except BackendLost as error:  # which is how QEMU answers to a state it cannot take
            raise StateRefused("qemu did not take the state", cause=error.cause) from error
        finally:
            os.close(fd)
        self._go_on()

    def save(self, state: int) -> None:
        """Write the state to an open file; the guest stands still meanwhile.

        The vsock device must be detached: a state cannot hold it.
        """
        fd = os.open(f"/proc/self/fd/{state}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            self.execute("stop")
            self.execute("migrate-set-parameters", {"max-bandwidth": _BANDWIDTH})
            self._migrate("migrate", fd)
        finally:
            os.close(fd)
            self._go_on()

    def _go_on(self) -> None:
        """QEMU says that a migration is complete a moment before it lets the guest run again."""
        deadline = time.monotonic() + _FINAL_SECONDS
        while True:
            try:
                self.execute("cont")
                return
            except QmpError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_FINAL_POLL)

    def _migrate(self, command: str, fd: int) -> None:
        self.execute("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
        fdset = self.execute("add-fd", fds=[fd])["fdset-id"]
        self.execute(command, {"uri": f"file:/dev/fdset/{int(fdset)}"})
        while True:
            status = self.wait_event("MIGRATION", states.seconds(self._memory)).get("status")
            if status == "completed":
                break
            if status in ("failed", "cancelled"):
                raise StateRefused(f"qemu could not {command}", cause=self.log_tail())
        self.execute("remove-fd", {"fdset-id": fdset})

    # --- the guest's ports ---

    def attach_vsock(self) -> None:
        """Plug the device in; the guest's driver finds it in its own time."""
        with self._lock:
            self._attach_vsock()

    def _attach_vsock(self) -> None:
        if self._listener is None:
            self._listener = self._listen("vsock")
        ours, theirs = socket.socketpair()
        with ours, theirs, self._ports() as ports:
            started = self._keeper.device(
                self._number, plans.CID, ours, self._listener, self._group, self._uid, ports
            )
            os.close(started.pidfd)
            self.controls["device"] = started.controls
            self._devices += 1
            self._plug(f"{_DEVICE}{self._devices}", "vhost-user-vsock-pci", theirs)

    def listen_to_guest(self) -> socket.socket:
        """Listens where streams arrive that the guest opens to its network's port, once a device is
        attached; the caller's to close. Raises SandboxError."""
        listener = self._listen(_NETWORK, dialled.BACKLOG)
        if self._uid is not None:
            with self._sockets.place(_NETWORK) as path:
                os.chown(path, self._uid, self._uid)
        return listener

    def attach_share(self, share: Share, guest_uid: int) -> None:
        """Plug a host directory in, under its tag."""
        path = shares.program()
        with self._listen(share.tag) as listener, socket.socket(socket.AF_UNIX) as ours:
            # One that it has not accepted yet: nobody else ever connects.
            with self._sockets.place(share.tag) as place:
                ours.connect(place)
            self._sockets.forget(share.tag)
            started = self._keeper.start(
                self._number,
                shares.command(path, share, guest_uid),
                {"listener": listener.fileno(), "root": share.fd},
                readable=("root",) if share.readonly else (),
                writable=() if share.readonly else ("root",),
                stage="root" if share.detached else None,
                group=self._group,
                uid=None if self._uid is None else share.uid,
                gid=share.gid,
                helper=True,
            )
            os.close(started.pidfd)
            self.controls["share"] = started.controls
            self._plug(share.tag, "vhost-user-fs-pci", ours, tag=share.tag)

    def _plug(self, name: str, driver: str, sock: socket.socket, **options: str) -> None:
        """A device whose other half is at the end of a vhost-user socket."""
        self.execute("getfd", {"fdname": name}, fds=[sock.fileno()])
        address = {"type": "fd", "data": {"str": name}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        self.execute("chardev-add", {"id": name, "backend": backend})
        self.execute("device_add", {"driver": driver, "id": name, "chardev": name, **options})

    def attach_disk(self, disk: int) -> None:
        """Plug an image's disk in; ``disk`` is of its file, the caller's to close."""
        fdset = self.execute("add-fd", fds=[disk])["fdset-id"]
        self.execute("blockdev-add", plans.disk_block(f"/dev/fdset/{int(fdset)}"))
        self.execute("device_add", plans.disk_device(SERIAL))

    def attach_card(self) -> None:
        """Plug a network card in, behind QEMU's own NAT."""
        self.execute("netdev_add", {"type": "user", "id": "net", "ipv6": False})
        self.execute("device_add", {"driver": "virtio-net-pci", "netdev": "net", "romfile": ""})

    def detach_vsock(self) -> None:
        """Unplug the device, with the guest's help; every connection through it ends. Raises
        SandboxError where the guest does not let go of it in time."""
        with self._lock:
            # What is being unplugged is refused a second time.
            with contextlib.suppress(*([QmpError] if self._leaving else [])):
                self.execute("device_del", {"id": f"{_DEVICE}{self._devices}"})
            self._leaving = True
            with self._explained():
                self._await_unplugged(_UNPLUG_SECONDS)

    def _await_unplugged(self, seconds: float) -> None:
        name = f"{_DEVICE}{self._devices}"
        self._monitor.wait_event(("DEVICE_DELETED",), seconds, device=name)
        self._leaving = False
        self._keeper.release(self._number)
        self.execute("chardev-remove", {"id": name})

    def vsock_stream(self, seconds: float) -> socket.socket:
        if self._leaving:
            self._plug_again()
        with self._explained(), self._sockets.place("vsock") as path:
            return streams.open_stream(f"hybrid:{path}:{plans.PORT}", seconds, self._check)

    def _plug_again(self) -> None:
        """A guest may let go of the device once nobody waits for that any more: it then has none,
        and nobody could reach it."""
        with self._lock:
            if not self._leaving:
                return
            try:
                self._await_unplugged(_LOOK_SECONDS)
            except SandboxError:
                return  # it has it still, or has ended: whoever opens a stream sees that
            self._attach_vsock()

    def serial_stream(self, seconds: float) -> socket.socket:
        """The one stream of the serial port; a second one waits for the first to be closed."""
        with self._explained(), self._sockets.place("serial") as path:
            return streams.open_stream(f"unix:{path}", seconds, self._check)

    def _check(self) -> None:
        if self.wait(0):
            raise MachineEnded(self.ending())

    # --- control ---

    def execute(
        self, command: str, arguments: dict[str, object] | None = None, *, fds: Sequence[int] = ()
    ) -> dict[str, Any]:
        with self._explained():
            answer = self._monitor.execute(command, arguments, fds=fds)
        return answer if isinstance(answer, dict) else {}

    def wait_event(self, name: str, seconds: float, **fields: object) -> dict[str, object]:
        with self._explained():
            return self._monitor.wait_event((name,), seconds, **fields)

    def _log(self) -> str:
        with contextlib.suppress(AgentdError):
            return self._keeper.look(self._number).console
        return ""

    def _seen_ending(self) -> Ending:
        try:
            seen = self._keeper.look(self._number)
        except AgentdError as error:
            return Ending(CauseCode.BACKEND_LOST, str(error))
        panic = _PANIC.search(seen.console)
        if panic:
            what = f"its kernel panicked: {safe_text(panic[1])}"
            return Ending(CauseCode.BACKEND_LOST, what, status=seen.status)
        if seen.running:
            return Ending(CauseCode.BACKEND_LOST, "it does not answer")
        if seen.status == 0:
            return Ending(CauseCode.BACKEND_LOST, "it shut down or restarted by itself", status=0)
        return ending.of_status(seen.status, seen.console, oom=self._oom())

    def end(self) -> None:
        """End every process of it and remove its sockets; idempotent, never raises.

        Another thread that waits for QEMU's answer gets BackendLost at once.
        """
        with self._end_lock:
            if self._ended:
                return
            if self.pidfd >= 0:
                closed = Ending(CauseCode.BACKEND_LOST, "it was closed")
                with self._looking:
                    self._ending = self._seen_ending() if self.wait(0) else closed
                self._kill()
                with contextlib.suppress(AgentdError):
                    self._keeper.end(self._number)
                self.wait(_END_SECONDS)
            self._ended = True
            if self.pidfd >= 0:
                os.close(self.pidfd)
            if self._qmp is not None:
                self._qmp.close()
            if self._listener is not None:
                self._listener.close()
            self._sockets.close()
            if self._block is not None:  # its helpers end after it, and we see none of them
                self._block.release(ended=False)

    def _listen(self, name: str, backlog: int = _BACKLOG) -> socket.socket:
        return self._sockets.listen(name, f"{self._keeper.folder}/{self._number}.{name}", backlog)

    @contextlib.contextmanager
    def _ports(self) -> Iterator[dict[int, int]]:
        """The socket that the port of a network leads to, by port; none without a network."""
        if _NETWORK not in self._sockets:
            yield {}
            return
        with self._sockets.file(_NETWORK) as file:
            yield {dialled.PORT: file}

    @property
    def _monitor(self) -> Qmp:
        if self._qmp is None or self._ended:
            raise BackendLost("the virtual machine is gone")
        return self._qmp

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """BackendLost says how the machine ended, where it has."""
        try:
            yield
        except QmpError:
            raise  # an answer: it lives
        except SandboxError as error:
            if self.wait(_DYING_SECONDS):
                raise MachineEnded(self.ending()) from error
            raise


def start(
    keeper: Keeper,
    machine: QemuMachine,
    boot: Boot,
    *,
    state: int | None = None,
    net: bool = False,
    group: cgroup.Group | None = None,
    block: Block | None = None,
    disk: int | None = None,
) -> QemuProcess:
    """Starts a machine; ``state`` is a descriptor of what ``save`` wrote, else it boots. ``disk``
    is of the file of the disk that the state has.

    ``block`` is released when it ends, and when it does not come up.
    """
    process = QemuProcess(keeper, keeper.number(), block, group)
    try:
        process.start(machine, boot, incoming=state is not None, net=net, disk=disk)
        if state is not None:
            process.load(state)
    except BaseException:
        process.end()
        raise
    return process
