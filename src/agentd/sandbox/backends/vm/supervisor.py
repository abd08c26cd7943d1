"""The host's end of one keeper: starts it, asks it for monitors and devices, ends it."""

import contextlib
import errno
import os
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agentd.linux import cgroup, process
from agentd.model.errors import AgentdError, SandboxError
from agentd.sandbox.backends.child import Ended, unsent
from agentd.sandbox.backends.helper import Helper
from agentd.sandbox.backends.vm import folders

_MODULE = "agentd.sandbox.backends.vm.keeper"


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


class Keeper(Helper):
    """Thread-safe. Closing it ends every machine: the kernel sees to that."""

    who = "keeper"
    unready = "the keeper could not start"
    answer_seconds = 30.0
    end_seconds = 10.0

    def __init__(self) -> None:
        self._machines = 0
        try:
            self.folder, lock = folders.claim()
        except (folders.FolderError, OSError) as error:
            raise SandboxError("no run folder can be made", cause=str(error)) from error
        with contextlib.ExitStack() as undo:
            undo.callback(folders.remove, self.folder)
            try:
                super().__init__(_MODULE)
                undo.callback(self._control.close)
                self._send({"folder": self.folder}, [lock])
            finally:
                os.close(lock)
            undo.pop_all()

    def number(self) -> int:
        """Return the number of a new machine."""
        with self._lock:
            self._machines += 1
            return self._machines

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
        """Starts a monitor, or a helper of a machine that has one: each ends when the other does.

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
        """Starts a vsock device between a machine's vhost-user socket and a hybrid one. ``ports``
        of the host's lead to the sockets that these descriptors name (O_PATH); to others nothing
        does."""
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

    def close(self) -> None:
        """End the keeper and with it every machine, and remove the run folder; idempotent."""
        if self._end() is not None:
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
            number = self._next_number()
            self._send({**request, "n": number}, fds)
            try:
                answer, passed = self._receive(self._control, number)
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

    def _give_up(self, machine: object) -> None:
        """End what was started and cannot be had; the answer is passed over by who asks next."""
        with contextlib.suppress(AgentdError):
            self._send({"op": "end", "vm": machine, "n": self._next_number()})


def _seen(answer: dict[str, object]) -> MachineStatus:
    status = answer["status"]
    return MachineStatus(
        answer["running"] is True,
        status if isinstance(status, int) else None,
        str(answer["console"]),
    )
