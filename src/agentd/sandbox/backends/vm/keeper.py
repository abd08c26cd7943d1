"""The keeper: a small process that starts, watches and ends the processes of virtual machines.

Started by the host with an empty environment, so standard library only. It is PID 1 of a pid
namespace: when it dies the kernel ends every monitor and device in it, and it ends when the host's
end of its socket closes. The process that the host started stays outside as the **guard**: it
waits for the keeper and then removes the run folder, however the keeper ended.

Requests come over a SEQPACKET socket, one JSON object each, descriptors beside it:

``{"op":"start","vm":N,"argv":[..],"names":[..],"readable":[..],"uid":..,"net":bool,..}``
    A monitor. The word ``{name}`` in ``argv`` becomes the number of the descriptor of that name;
    those after the named ones are the doors of its cgroup. Answers ``{"ok","controls"}`` with a
    pidfd.
``{"op":"help",..}``
    Another program for the same machine, likewise.
``{"op":"device","vm":N,"cid":N,"uid":..,"ports":[..]}``
    A vsock device on two descriptors, the vhost-user socket and the listener, and one for each of
    ``ports``, the socket that the guest reaches there; likewise a pidfd.
``{"op":"release","vm":N}``
    End the device; the monitor lives on. Otherwise nothing of a machine survives the rest.
``{"op":"look","vm":N}``
    Answers ``{"running","status","console"}``: how the monitor ended, and the console's end.
``{"op":"end","vm":N}``
    End both; answers as ``look``.
"""

import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from typing import NoReturn

from agentd.guest.zygote.messages import receive, refuse, send
from agentd.linux import abi, privileges, process, seccomp
from agentd.linux.clone import Cloner
from agentd.linux.kernel import KERNEL
from agentd.linux.title import set_title
from agentd.sandbox.backends.vm import children, folders
from agentd.sandbox.backends.vm.confine import Cell
from agentd.sandbox.backends.vm.ring import LogRing

CONTROL_FD = 3
CONSOLE_BYTES = 64 << 10
# A message must hold it, escaped.
_TAIL = 8 << 10
# One read of a console: a guest that floods it is read no faster than all else is served.
_READ = 16 << 10
_MAX_VMS = 4096
_MAX_HELPERS = 40
# A monitor that ends by itself hangs up on its device and helpers a moment before.
ORPHAN_SECONDS = 1.0


class _Vm:
    """A machine: its processes' pids and pidfds, and what it printed."""

    def __init__(self) -> None:
        self.monitor = 0
        self.device = 0
        self.helpers: set[int] = set()
        self.status: int | None = None
        self.ring = LogRing(CONSOLE_BYTES)
        self.console: socket.socket | None = None
        self.output: socket.socket | None = None  # the console's other end


def main() -> None:
    """Serve until the host closes its end. Never returns."""
    os.closerange(CONTROL_FD + 1, os.sysconf("SC_OPEN_MAX"))  # what the host forgot to mark
    control = socket.socket(fileno=CONTROL_FD)
    control.set_inheritable(False)
    # Descriptors on their way are counted by user: ours must not be the limit that a user's other
    # processes reach first.
    process.raise_file_limit()
    try:
        config, _lock = receive(control)  # the run folder's: held until the guard ends, too
        cloner = _prepare(str(config["folder"]))
        filter_ = seccomp.build("monitor")
    except (OSError, EOFError, ValueError) as error:
        with contextlib.suppress(OSError):
            send(control, {"error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    try:
        send(control, {"ok": True})
        KeeperServer(control, cloner, filter_).serve()
    finally:
        os._exit(0)


def _prepare(folder: str) -> Cloner:
    """Enter the pid namespace; the first process goes no further than ``_guard``."""
    set_title("agentd-vm")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the host ends us by closing the socket
    cloner = Cloner()
    uid, gid = os.geteuid(), os.getegid()
    own = not privileges.may_mount()
    KERNEL.unshare(abi.CLONE_NEWPID | (abi.CLONE_NEWUSER if own else 0))
    if own:
        process.map_ids((uid, uid), (gid, gid))
    guard = os.getpid()
    pid = os.fork()
    if pid:
        _guard(pid, folder)
    # Sent from an ancestor namespace, SIGKILL reaches even a namespace's PID 1.
    process.set_pdeathsig(signal.SIGKILL)
    if os.path.exists(f"/proc/{guard}") is False:
        os._exit(1)
    return cloner


def _guard(keeper: int, folder: str) -> NoReturn:
    """Outside the namespace: what is left of the keeper goes when it has gone."""
    os.close(CONTROL_FD)
    os.waitpid(keeper, 0)
    folders.remove(folder)
    os._exit(0)


class KeeperServer:
    def __init__(self, control: socket.socket, cloner: Cloner, filter_: bytes) -> None:
        self._control = control
        self._cloner = cloner
        self._filter = filter_
        self._share = seccomp.build("share")
        self._vms: dict[int, _Vm] = {}
        self._orphans: deque[tuple[float, _Vm]] = deque()  # when to end a monitor, the next first
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._request)

    def serve(self) -> None:
        """Serve until the host is gone. Raises EOFError then."""
        while True:
            ready = [key for key, _ in self._selector.select(self._end_orphans())]
            # Requests last: what had ended before one was sent is told by its answer.
            for key in sorted(ready, key=lambda key: key.fileobj is self._control):
                key.data()

    def _end_orphans(self) -> float | None:
        """The monitors that have outlived their device for too long; seconds to the next one."""
        while self._orphans:
            left = self._orphans[0][0] - time.monotonic()
            if left > 0:
                return left
            _end(self._orphans.popleft()[1].monitor)
        return None

    def _request(self) -> None:
        """Serve one request. None that fails ends us: every machine would end with it."""
        try:
            request, fds = receive(self._control)
        except (OSError, ValueError, MemoryError) as error:
            refuse(self._control, None, error)
            return
        answer: tuple[dict[str, object], list[int]]
        try:
            answer = self._perform(request, fds)
        except EOFError:
            raise
        except Exception as error:
            answer = {"error": str(error) or type(error).__name__}, []
        finally:
            for fd in fds:
                os.close(fd)
        number = request.get("n")
        try:
            send(self._control, {**answer[0], "n": number}, answer[1])
        except OSError as error:  # nobody can have what was started
            for pidfd in answer[1]:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if request.get("op") == "start":
                self._vms.pop(children.integer(request["vm"]), None)
            refuse(self._control, number, error)

    def _perform(
        self, request: dict[str, object], fds: list[int]
    ) -> tuple[dict[str, object], list[int]]:
        number = children.integer(request["vm"])
        vm = self._vms.get(number)
        if request["op"] == "start":
            return self._start(number, request, fds)
        if vm is None:
            return {"error": f"there is no machine {number}"}, []
        if request["op"] == "device":
            return self._device(vm, request, fds)
        if request["op"] == "help":
            return self._help(vm, request, fds)
        if request["op"] == "release":
            self._release(vm)
            return {"ok": True}, []
        if request["op"] == "end":
            self._kill(vm)
            del self._vms[number]
        return self._seen(vm), []

    def _start(
        self, number: int, request: dict[str, object], fds: list[int]
    ) -> tuple[dict[str, object], list[int]]:
        if len(self._vms) >= _MAX_VMS or number in self._vms:
            return {"error": f"machine {number} cannot be added to {len(self._vms)}"}, []
        vm = _Vm()
        ours, theirs = socket.socketpair()
        cell = children.program_cell(request, fds)
        cell.filter = self._filter  # what the monitor forbids itself comes on top
        try:
            child = children.start_program(self._cloner, cell, request, fds, theirs.fileno())
        except BaseException:
            ours.close()
            theirs.close()
            raise
        ours.setblocking(False)
        vm.monitor, vm.console, vm.output = child.pid, ours, theirs
        self._vms[number] = vm
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._drain(vm))
        return self._watched(vm, child)

    def _help(
        self, vm: _Vm, request: dict[str, object], fds: list[int]
    ) -> tuple[dict[str, object], list[int]]:
        if vm.output is None or len(vm.helpers) >= _MAX_HELPERS:
            return {"error": "the machine has ended, or has too many helpers"}, []
        cell = children.program_cell(request, fds)
        cell.filter = self._share  # what it forbids itself comes on top
        child = children.start_program(self._cloner, cell, request, fds, vm.output.fileno())
        vm.helpers.add(child.pid)
        return self._watched(vm, child)

    def _device(
        self, vm: _Vm, request: dict[str, object], fds: list[int]
    ) -> tuple[dict[str, object], list[int]]:
        if not vm.monitor or vm.device:
            return {"error": "the machine has ended, or has a device already"}, []
        uid = request["uid"]
        cell = Cell(uid=uid if isinstance(uid, int) else None, filter_=self._filter)
        child = children.start_device(self._cloner, cell, request, fds)
        vm.device = child.pid
        return self._watched(vm, child)

    def _watched(self, vm: _Vm, child: children.Child) -> tuple[dict[str, object], list[int]]:
        """The answer about a new process, whose end is looked for from now on. The descriptor that
        is sent stays ours: another may not be had, and nobody would see its end."""
        pidfd = child.pidfd
        self._selector.register(
            pidfd, selectors.EVENT_READ, lambda: self._ended(vm, child.pid, pidfd)
        )
        return {"ok": True, "controls": child.controls}, [pidfd]

    def _ended(self, vm: _Vm, pid: int, pidfd: int) -> None:
        """A process has: reap it, and end what makes no sense without it."""
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        if pid == vm.monitor:
            vm.monitor, vm.status = 0, os.waitstatus_to_exitcode(status)
            self._drain(vm)
            self._close_console(vm)
            _end(vm.device, *vm.helpers)
        elif pid == vm.device:
            vm.device = 0
            self._orphan(vm, "the vsock device")
        elif pid in vm.helpers:
            vm.helpers.discard(pid)
            self._orphan(vm, "a helper of the machine")

    def _orphan(self, vm: _Vm, what: str) -> None:
        if not vm.monitor:
            return  # which we ended it for
        vm.ring.add(f"\nagentd: {what} ended\n".encode())
        self._orphans.append((time.monotonic() + ORPHAN_SECONDS, vm))

    def _release(self, vm: _Vm) -> None:
        device, vm.device = vm.device, 0
        _end(device)

    def _kill(self, vm: _Vm) -> None:
        """The watchers reap; what the console still holds is nobody's any more."""
        _end(vm.monitor, vm.device, *vm.helpers)
        self._close_console(vm)

    def _drain(self, vm: _Vm) -> None:
        if vm.console is None:
            return
        try:
            data = vm.console.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            vm.ring.add(data)
        else:
            self._close_console(vm)

    def _close_console(self, vm: _Vm) -> None:
        if vm.console is not None:
            self._selector.unregister(vm.console)
            vm.console.close()
            vm.console = None
        if vm.output is not None:
            vm.output.close()
            vm.output = None

    def _seen(self, vm: _Vm) -> dict[str, object]:
        return {"running": bool(vm.monitor), "status": vm.status, "console": vm.ring.text(_TAIL)}


def _end(*pids: int) -> None:
    for pid in pids:
        if pid:  # ours and not reaped: the number is no stranger's
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main()
