"""The host's end of one keeper: starts it, asks it for monitors and devices, ends it."""

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agentd.guest.zygote.messages import MAX_MESSAGE
from agentd.linux import cgroup, process
from agentd.model.errors import AgentdError, SandboxError
from agentd.sandbox.backends.cgroups import ready_to_start
from agentd.sandbox.backends.child import Ended, reap, receive, send, start_python, unsent
from agentd.sandbox.backends.vm import folders

_MODULE = "agentd.sandbox.backends.vm.keeper"
_ANSWER_SECONDS = 30.0


class StartedProcess(NamedTuple):
    """A process of a machine: its pid as seen from here, and a pidfd, the caller's to close."""

    pid: int
    pidfd: int
    controls: list[str]


class MachineStatus(NamedTuple):
    """``status`` is the monitor's exit code, negative for a signal; None while it runs."""

    running: bool
    status: int | None
    console: str


class Keeper:
    """Thread-safe. Closing it ends every machine: the kernel sees to that."""

    def __init__(self) -> None:
        """Starts the process and returns at once; the first request waits for it."""
        ready_to_start()
        self._lock = threading.Lock()
        self._ready = False
        self._owner = os.getpid()
        self._next = 0
        self._asked = 0
        try:
            self.folder, lock = folders.claim()
        except (folders.FolderError, OSError) as error:
            raise SandboxError("no run folder can be made", cause=str(error)) from error
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.pid = start_python(_MODULE, (control,))
            send(self._control, {"folder": self.folder}, [lock], "keeper", MAX_MESSAGE)
        except BaseException:
            self._control.close()
            folders.remove(self.folder)
            raise
        finally:
            control.close()
            os.close(lock)

    def wait_ready(self) -> None:
        """Raises SandboxError with the keeper's own words when it could not start."""
        with self._lock:
            self._wait_ready()

    def number(self) -> int:
        """Return the number of a new machine."""
        with self._lock:
            self._next += 1
            return self._next

    def start(
        self,
        number: int,
        argv: Sequence[str],
        fds: Mapping[str, int],
        *,
        readable: Sequence[str] = (),
        writable: Sequence[str] = (),
        stage: str | None = None,
        net: bool = False,
        group: cgroup.Group | None = None,
        uid: int | None = None,
        gid: int | None = None,
        helper: bool = False,
    ) -> StartedProcess:
        """A monitor, or a helper of a machine that has one: each ends when the other does.

        ``{name}`` in ``argv`` becomes the number of that descriptor in it. ``readable`` and
        ``writable`` name descriptors of files that it opens again by /proc/self/fd, or of
        directories; ``stage`` names a detached mount that it finds at ``confine.STAGE``. Raises
        SandboxError.
        """
        request: dict[str, object] = {
            "op": "help" if helper else "start",
            "vm": number,
            "argv": list(argv),
            "names": list(fds),
            "readable": list(readable),
            "writable": list(writable),
            "stage": stage,
            "net": net,
            "uid": uid,
            "gid": gid,
        }
        return self._started(request, list(fds.values()), group)

    def device(
        self,
        number: int,
        cid: int,
        control: socket.socket,
        listener: socket.socket,
        group: cgroup.Group | None = None,
        uid: int | None = None,
        ports: Mapping[int, int] | None = None,
    ) -> StartedProcess:
        """A vsock device between a machine's vhost-user socket and a hybrid one. ``ports`` of the
        host's lead to the sockets that these descriptors name (O_PATH); to others nothing does."""
        places = dict(ports or {})
        request: dict[str, object] = {"op": "device", "vm": number, "cid": cid, "uid": uid}
        request["ports"] = list(places)
        fds = [control.fileno(), listener.fileno(), *places.values()]
        return self._started(request, fds, group)

    def release(self, number: int) -> None:
        """End a machine's device and keep the machine."""
        self._ask({"op": "release", "vm": number})

    def look(self, number: int) -> MachineStatus:
        return _seen(self._ask({"op": "look", "vm": number})[0])

    def end(self, number: int) -> MachineStatus:
        """End a machine; its processes are gone when their pidfds say so."""
        return _seen(self._ask({"op": "end", "vm": number})[0])

    def alive(self) -> bool:
        return not reap(self.pid)

    def close(self) -> None:
        """End the keeper and with it every machine, and remove the run folder; idempotent."""
        self._control.close()
        if os.getpid() != self._owner:
            return  # a forked copy of us: the keeper belongs to the original
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            if not self.alive():
                break
            time.sleep(0.001)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        folders.remove(self.folder)  # where the guard could not: it was killed

    def _started(
        self, request: dict[str, object], fds: list[int], group: cgroup.Group | None
    ) -> StartedProcess:
        doors = group.doors() if group is not None else []
        try:
            answer, passed = self._ask(request, [*fds, *doors])
        finally:
            for fd in doors:
                os.close(fd)
        try:
            pid = process.pidfd_of_fdinfo(passed[0])
        except OSError as error:
            os.close(passed[0])
            with self._lock:
                self._give_up(request["vm"])
            raise SandboxError("the machine's process cannot be seen", cause=str(error)) from error
        controls = answer["controls"]
        return StartedProcess(pid, passed[0], controls if isinstance(controls, list) else [])

    def _ask(
        self, request: dict[str, object], fds: Sequence[int] = ()
    ) -> tuple[dict[str, object], list[int]]:
        with self._lock:
            self._wait_ready()
            self._asked += 1
            number = self._asked
            send(self._control, {**request, "n": number}, fds, "keeper", MAX_MESSAGE)
            try:
                answer, passed = self._answer(number)
            except SandboxError as error:
                if request["op"] == "start" and not isinstance(error, Ended):
                    self._give_up(request["vm"])
                raise
        if "error" in answer:
            if answer.get("errno") == errno.ETOOMANYREFS:
                raise unsent("host", OSError(errno.ETOOMANYREFS, str(answer["error"])))
            what = str(request["op"])
            raise SandboxError(f"the keeper cannot {what} it", cause=str(answer["error"]))
        return answer, passed

    def _answer(self, number: int) -> tuple[dict[str, object], list[int]]:
        """Take the next answer; one that came too late for its question is nobody's."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            left = max(0.0, deadline - time.monotonic())
            answer, passed = receive(self._control, left, "keeper")
            if answer.get("n") in (None, number):  # None: it could not read which one
                return answer, passed
            for fd in passed:
                os.close(fd)

    def _give_up(self, machine: object) -> None:
        """End what was started and cannot be had; the answer is passed over by who asks next."""
        self._asked += 1
        request = {"op": "end", "vm": machine, "n": self._asked}
        with contextlib.suppress(AgentdError):
            send(self._control, request, [], "keeper", MAX_MESSAGE)

    def _wait_ready(self) -> None:
        if self._ready:
            return
        answer, _ = receive(self._control, _ANSWER_SECONDS, "keeper")
        if "error" in answer:
            raise SandboxError("the keeper could not start", cause=str(answer["error"]))
        self._ready = True


def _seen(answer: dict[str, object]) -> MachineStatus:
    status = answer["status"]
    return MachineStatus(
        answer["running"] is True,
        status if isinstance(status, int) else None,
        str(answer["console"]),
    )
