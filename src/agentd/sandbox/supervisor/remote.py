"""Backends and walls of a supervisor, seen from the daemon: the same ports as those in process."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.linux import cgroup
from agentd.linux.pidfd import Pidfd
from agentd.model import typed
from agentd.model.availability import Availability
from agentd.model.egress import asks
from agentd.model.errors import AgentdError, BackendLost, InvalidInput, Refused
from agentd.model.result import Cause
from agentd.model.spec import SandboxSpec
from agentd.sandbox import backends
from agentd.sandbox.abilities import FORK, Method, methods
from agentd.sandbox.backends.wall import only_agent_left
from agentd.sandbox.supervisor import wire
from agentd.sandbox.supervisor.client import PendingAnswer, SupervisorLink
from agentd.sandbox.supervisor.held import WallRecord
from agentd.sandbox.volume_lease import holder

if TYPE_CHECKING:
    from agentd.model.enforcement import Enforcement
    from agentd.model.isolation import IsolationLevel
    from agentd.sandbox.ports import Plan

# The lease of a new wall: it ends should the daemon die before it has recorded the wall.
_UNCLAIMED_SECONDS = 60.0
_END_SECONDS = 30.0
_NO_ENV: Mapping[str, str] = {}


class RemotePlan(msgspec.Struct, frozen=True):
    spec: SandboxSpec


class RemoteBackend:
    """A backend of the supervisor. Its walls end after a minute unless their lease is renewed."""

    supervised = True  # see ``backends.is_others``

    def __init__(self, link: SupervisorLink, name: str) -> None:
        self._link = link
        self.name = name
        self.level: IsolationLevel = backends.level(name)
        self._availability: Availability | None = None

    def requirements(self) -> tuple[str, ...]:
        return backends.load(self.name).requirements()

    def probe(self) -> Availability:
        if self._availability is None or not self._availability.usable:
            answer = self._link.ask("probe", backend=self.name)
            self._availability = typed.convert(answer, Availability)
        return self._availability

    def plan(self, spec: SandboxSpec) -> RemotePlan:
        if any(mount.volume for mount in spec.mounts):
            # One of before would take it for a folder, and let it be removed in use.
            self._check_known("volumes", "volumes")
        if spec.locked:  # likewise
            self._check_known("packages", "packages")
        if spec.net == "restricted":
            self._check_known("networks", "networks of rules")
            if any(map(asks, spec.egress)):
                self._check_known("asks", "rules that ask")
        if spec.secrets:
            self._check_known("secrets", "secrets")
        self._link.ask("plan", backend=self.name, spec=msgspec.to_builtins(spec))
        return RemotePlan(spec)

    def launch(self, plan: "Plan") -> "RemoteWall":
        return self._launch("launch", plan)

    @property
    def images(self) -> bool:
        return backends.images(self.name)

    @property
    def writable(self) -> bool:
        return backends.writable(self.name)

    @property
    def runtimes(self) -> tuple[str, ...]:
        return backends.runtimes(self.name)

    @property
    def volumes(self) -> bool:
        return backends.volumes(self.name)

    @property
    def abilities(self) -> frozenset[str]:
        return backends.abilities(self.name)

    @property
    def restore(self) -> "Callable[[Plan, str], RemoteWall]":
        """Raises AttributeError where the backend has no such method, as any other does."""
        if FORK.name not in self.abilities:
            raise AttributeError("restore")
        return lambda plan, folder: self._launch("restore", plan, folder=folder)

    def close(self) -> None:
        """Does nothing: the supervisor's backends live on with its sandboxes."""

    def _check_known(self, op: str, what: str) -> None:
        """Raises Refused where the supervisor does not answer ``op``."""
        try:
            self._link.ask(op)
        except InvalidInput as error:
            raise Refused(
                f"the supervisor is of an older agentd, which knows no {what}",
                remediation="end its sandboxes and restart the daemon: the next one knows them",
            ) from error

    def _launch(self, op: str, plan: "Plan", **fields: Any) -> "RemoteWall":
        id_ = "wall-" + os.urandom(10).hex()
        spec = msgspec.to_builtins(plan.spec)
        fields |= {"backend": self.name, "id": id_, "spec": spec, "lease": _UNCLAIMED_SECONDS}
        fields["sandbox"] = holder.get()
        answer, fds = self._link.ask_fds(op, **fields)
        process = _process_of(fds)
        return RemoteWall(self._link, typed.convert(answer, WallRecord), process)


class RemoteWall:
    """A wall in the supervisor. It has the methods of each ability that the wall there has.

    Its counters are read from the group's own files. Where a pidfd of its first process came along,
    the wall is killed and awaited by that: to ask the supervisor takes two hops more. The
    supervisor then frees what the wall held.
    """

    def __init__(
        self, link: SupervisorLink, record: WallRecord, process: Pidfd | None = None
    ) -> None:
        self._link = link
        self.id = record.id
        self.enforcement: Enforcement = record.enforcement
        self.workspace = record.workspace
        self.passes_descriptors = record.passes_descriptors
        self.pipe_owner = record.pipe_owner
        self.pipe_bytes = record.pipe_bytes
        self.workdir = record.workdir
        self.command = record.command
        self._lock = threading.Lock()
        self._begun = False
        self._first_killed = False
        self._killed: PendingAnswer | None = None  # a second question would be answered at once
        self._process = process
        self._group = None if record.counted is None else cgroup.reopen(record.counted)
        self.fidelity = record.fidelity
        self.lacks = record.lacks
        for method in methods(record.can):
            setattr(self, method.name, partial(self._perform, method))

    def _perform(self, method: Method, *arguments: object) -> Any:
        fields = msgspec.to_builtins(method.arguments(*arguments))
        if method.in_file:
            fields["file"] = True
        value, fds = self._link.ask_fds(method.name, id=self.id, **fields)
        if fds:  # a supervisor of an older version has it in its message
            value = wire.from_file(fds[0])
        # What a method without a result answered differs by version.
        result: Any = None if method.result is None else typed.convert(value, method.result)
        if method.control:
            self.enforcement = {**self.enforcement, method.control: result}
        return result

    def open_stream(self) -> socket.socket:
        _, fds = self._link.ask_fds("stream", id=self.id)
        if len(fds) != 1:
            raise BackendLost(f"the supervisor gave {len(fds)} streams for one")
        return socket.socket(fileno=fds[0])

    def counters(self) -> dict[str, int]:
        if self._group is not None and ((found := self._group.counters()) or self.alive()):
            return found
        # Of one that has ended the group is soon gone: the supervisor knows what it had counted.
        counters: dict[str, int] = self._ask_of_the_living("counters", {})
        return counters

    def usage(self) -> dict[str, int]:
        if self._group is not None:
            return self._group.usage()
        usage: dict[str, int] = self._ask_of_the_living("usage", {})
        return usage

    def alive(self) -> bool:
        return not self.wait(0)

    def wait(self, timeout: float | None = None) -> bool:
        if self._process is not None:
            return self._process.wait(timeout)
        gone: bool = self._ask_of_the_living("wait", True, timeout=timeout)
        return gone

    def ending(self) -> Cause | None:
        told = self._ask_of_the_living("ending", None)
        return None if told is None else typed.convert(told, Cause)

    def begin_kill(self) -> None:
        with self._lock:
            if self._begun:
                return
            self._begun = True
            self._kill_first()
            with contextlib.suppress(AgentdError):
                if self._process is None:
                    self._killed = self._link.begin("kill", id=self.id)
                else:
                    self._link.tell("kill", id=self.id)  # the pidfd tells when it has ended

    def end_if_idle(self, tell: Callable[[], object]) -> bool:
        """Ends it where no command's process is left, so that it takes no time; else returns False.
        ``tell`` is called before anything is killed. Never blocks."""
        if self._process is None or not only_agent_left(self._group):
            return False
        tell()
        self._kill_first()
        return self._first_killed and only_agent_left(self._group)

    def first_process(self) -> int | None:
        try:
            return None if self._process is None else self._process.duplicate()
        except ProcessLookupError:
            return None

    def end(self) -> None:
        self.begin_kill()
        if not (self._first_killed and only_agent_left(self._group)):
            self._await_end()

    def kill(self) -> None:
        """End it; where the supervisor cannot be told, the lease there ends it."""
        self.begin_kill()
        self._await_end()
        if self._process is not None:
            self._process.close()

    def _kill_first(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):  # the supervisor kills it, too
                self._process.kill()
                self._first_killed = True

    def _await_end(self) -> None:
        if self._process is not None:
            self._process.wait(_END_SECONDS)
        elif self._killed is not None:
            with contextlib.suppress(AgentdError):
                self._killed.result(_END_SECONDS)

    def save(self) -> dict[str, object]:
        return {"wall": self.id}

    def renew(self, seconds: float | None) -> None:
        """Let its lease end so many seconds from now; never, for None. Raises SandboxError."""
        self._link.ask("renew", id=self.id, lease=seconds)

    def tell_lease(self, seconds: float, env: Mapping[str, str] = _NO_ENV) -> None:
        """Does as ``renew``, for one that has just been seen to live: nothing is waited for. The
        supervisor keeps ``env`` for the next daemon. Raises BackendLost."""
        self._link.tell("renew", id=self.id, lease=seconds, **({"env": dict(env)} if env else {}))

    def _ask_of_the_living(self, op: str, otherwise: Any, **fields: Any) -> Any:
        try:
            return self._link.ask(op, id=self.id, **fields)
        except AgentdError:  # it has ended, or the supervisor has
            return otherwise


def wall_of(link: SupervisorLink, record: WallRecord) -> RemoteWall:
    """Returns the wall that the supervisor describes by ``record``."""
    try:
        _, fds = link.ask_fds("process", id=record.id)
    except AgentdError:  # it has ended just now
        fds = []
    return RemoteWall(link, record, _process_of(fds))


def _process_of(fds: list[int]) -> Pidfd | None:
    return Pidfd(fds[0]) if fds else None


def loader(link: SupervisorLink) -> Callable[[str], RemoteBackend]:
    """Return the loader for a Manager: backends of the supervisor by name."""
    return lambda name: RemoteBackend(link, name)


def held(link: SupervisorLink) -> list[WallRecord]:
    """List every sandbox of the supervisor: what a daemon that was restarted can go on with."""
    found: list[WallRecord] = []
    after, more = "", True
    while more:
        page = link.ask("list", after=after)
        found += typed.convert(page["sandboxes"], list[WallRecord])
        after, more = page["after"], page["more"]
    return found
