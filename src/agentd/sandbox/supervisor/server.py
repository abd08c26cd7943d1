"""The supervisor's work: build walls, hand out streams to them, enforce their leases."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from agentd.egress.tally import TALLY
from agentd.linux import rights
from agentd.model import typed
from agentd.model.errors import BackendLost, InvalidInput, SandboxError
from agentd.model.result import Cause
from agentd.model.spec import SandboxSpec
from agentd.sandbox import abilities, backends, guard
from agentd.sandbox.abilities import Ability, Method, incapable
from agentd.sandbox.backends import identity, others
from agentd.sandbox.backends.child import unsent
from agentd.sandbox.ports import Backend, EndsEarly, Plan, Wall
from agentd.sandbox.supervisor import asking, wire
from agentd.sandbox.supervisor.held import NOT_SEEN, HeldWall, LastSeen, after, boottime
from agentd.sandbox.supervisor.wire import Message
from agentd.sandbox.supervisor.workers import Workers
from agentd.sandbox.volume_lease import holder

_WORKERS = 64  # of which one caller gets half
_TICK_SECONDS = 0.5
_AGAIN_SECONDS = 60.0  # until what could not be killed is killed again
_PAGE = 16
# A waiting request holds a worker; who waits longer asks again.
_WAIT_SECONDS = 5.0
_MAX_ENDINGS = 256
# A daemon whose supervisor may be older asks: networks of rules, and rules that ask, among them.
_KNOWN = ("volumes", "packages", "networks", "secrets", "asks")
# These touch our own tables alone: a thread for each would take longer.
_AT_ONCE = ("hello", "renew")
# A value, and descriptors, which are closed once they are sent.
Answer = tuple[object, list[int]]


class Supervisor:
    """Thread-safe. One daemon at a time; the newest takes over."""

    def __init__(self, load: Callable[[str], Backend] = backends.load) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._backends: dict[str, Backend] = {}
        self._entries: dict[str, HeldWall] = {}
        self._last_seen: dict[str, LastSeen] = {}  # of walls that ended by themselves
        self.daemon: socket.socket | None = None  # who is connected now
        self._sending = threading.Lock()
        self._workers = Workers(_WORKERS)
        self._asking = asking.DaemonAsking(self._tell, partial(self._submit, {}))
        self.closing = threading.Event()
        self.idle_since = boottime()
        self._operations: dict[str, Callable[[Message], Answer]] = {
            "hello": self._hello,
            "probe": self._probe,
            "plan": self._plan,
            **dict.fromkeys(_KNOWN, lambda _: (True, [])),
            "answer": lambda m: (asking.answer(self._entry(m), m), []),
            "launch": self._launch,
            "restore": self._launch,
            "list": self._list,
            "stream": self._stream,
            "process": lambda m: (None, _first_process(self._entry(m).wall)),
            "counters": lambda m: (self._counters(m), []),
            "usage": lambda m: (self._entry(m).wall.usage(), []),
            "ending": lambda m: (self._ending(str(m.get("id"))), []),
            "save": lambda m: (self._entry(m).wall.save(), []),
            "wait": self._wait,
            "renew": self._renew,
            "shutdown": self._shutdown,
        }
        for ability in abilities.FORWARDED:
            for method in ability.methods:
                self._operations[method.name] = partial(self._perform, ability, method)

    @property
    def is_idle(self) -> bool:
        """Tells whether it has neither a sandbox nor a daemon."""
        with self._lock:
            return not self._entries and self.daemon is None

    def serve(self, daemon: socket.socket) -> None:
        """Answer one daemon until it goes away; its sandboxes stay. Owns ``daemon``."""
        with self._lock:
            before, self.daemon = self.daemon, daemon
        try:
            if before is not None:  # a daemon that hangs must not keep a new one out
                with contextlib.suppress(OSError):  # its own thread may have closed it by now
                    before.shutdown(socket.SHUT_RDWR)
                asking.refuse(self._all())
            while True:
                message, fds = wire.receive(daemon)
                rights.close_all(fds)
                if message.get("op") in _AT_ONCE:
                    self._answer(daemon, message)
                elif message.get("op") == "kill":
                    self._begin_kill(daemon, message)
                else:
                    self._submit(message, self._answer, daemon, message)
        except (EOFError, OSError, ValueError, RuntimeError):
            pass  # it is gone, speaks something else, or we are ending
        finally:
            with self._lock:
                last = self.daemon is daemon
                self.daemon = None if last else self.daemon
            daemon.close()
            if last:
                asking.refuse(self._all())

    def watch(self) -> None:
        """Enforce leases and notice ends, until ``close``. Runs in a thread of its own."""
        while not self.closing.wait(_TICK_SECONDS):
            for entry in self._all():
                try:
                    self._look_at(entry)
                except backends.ANYTHING as error:  # the leases of the others hold all the same
                    guard.tell(error)
            if not self.is_idle:
                self.idle_since = boottime()

    def _look_at(self, entry: HeldWall) -> None:
        if entry.deadline is not None and boottime() >= entry.deadline:
            self._end(entry, "lease_expired")
        elif not entry.wall.alive():
            last = entry.last_seen()
            self._keep(entry.id, last)
            self._end(entry, "backend_lost", last.why)

    def close(self) -> None:
        """End every sandbox and free the backends; idempotent."""
        self.closing.set()
        with contextlib.ExitStack() as rest:  # all of it, whatever one of them raises
            rest.callback(self._workers.close)
            with self._lock:
                made, self._backends = list(self._backends.values()), {}
            for backend in made:
                rest.callback(backend.close)
            for entry in self._all():
                rest.callback(self._end, entry, "shutdown")

    def _submit(self, message: Message, work: Callable[..., object], *args: object) -> None:
        """Have it done for whom it is asked. Raises RuntimeError where we are ending."""
        self._workers.submit(str(message.get("whose", "")), partial(work, *args))

    def _answer(self, daemon: socket.socket, message: Message) -> None:
        operation = self._operations.get(str(message.get("op")), _unknown)
        self._answer_with(daemon, message, operation)

    def _answer_with(
        self, daemon: socket.socket, message: Message, operation: Callable[[Message], Answer]
    ) -> None:
        number = message.get("n")
        fds: list[int] = []
        try:
            value, fds = operation(message)
            reply: Message = {"n": number, "ok": msgspec.to_builtins(value)}
        except backends.ANYTHING as error:
            reply = {"n": number, "error": wire.encode_error(error)}
        try:
            if number is not None:
                self._send(daemon, reply, fds)
        finally:
            rights.close_all(fds)

    def _send(self, daemon: socket.socket, message: Message, fds: list[int]) -> None:
        with self._sending:
            try:
                wire.send(daemon, message, fds)
            except Exception as error:
                # A daemon that lives must not wait for an answer that could not be sent. Where it
                # has died, the next daemon asks again.
                told = unsent("daemon", error) if isinstance(error, OSError) else error
                with contextlib.suppress(OSError):
                    wire.send(daemon, {"n": message.get("n"), "error": wire.encode_error(told)})

    def _tell(self, message: Message) -> bool:
        """Return whether there is a daemon, which hears it unless it goes away."""
        with self._lock:
            daemon = self.daemon
        if daemon is not None:
            self._send(daemon, message, [])
        return daemon is not None

    def _hello(self, message: Message) -> Answer:
        if self.closing.is_set():
            raise BackendLost("the supervisor is about to end", remediation="start another")
        if "ids" in message:  # for walls that are built from now on
            identity.configure(typed.convert(message["ids"], identity.Range))
        return {"pid": os.getpid(), "sandboxes": len(self._all()), "network": TALLY.counts()}, []

    def _list(self, message: Message) -> Answer:
        after = str(message.get("after", ""))
        ids = sorted(entry.id for entry in self._all() if entry.id > after)
        page = [self._entries[id_].describe() for id_ in ids[:_PAGE] if id_ in self._entries]
        last = page[-1].id if page else ""
        return {"sandboxes": page, "more": len(ids) > _PAGE, "after": last}, []

    def _probe(self, message: Message) -> Answer:
        return backends.probe(self._backend(str(message["backend"]))), []

    def _plan(self, message: Message) -> Answer:
        spec = typed.convert(message["spec"], SandboxSpec)
        return backends.plan(self._backend(str(message["backend"])), spec) is not None, []

    def _launch(self, message: Message) -> Answer:
        name, id_ = str(message["backend"]), str(message["id"])
        after(message.get("lease"))  # what is wrong with it is told before anything is built
        spec = typed.convert(message["spec"], SandboxSpec)
        backend = self._backend(name)
        plan = backends.plan(backend, spec)
        told = holder.set(str(message.get("sandbox") or id_))
        try:
            wall = _built(backend, plan, message.get("folder"))
        finally:
            holder.reset(told)
        entry = HeldWall(id_, spec, name, wall)
        entry.deadline = after(message.get("lease"))
        with self._lock:
            taken = id_ in self._entries or self.closing.is_set()
            if not taken:
                self._entries[id_] = entry
        if taken:
            wall.kill()
            raise SandboxError(f"sandbox {id_} cannot be kept: it exists, or the daemon is ending")
        self._asking.attach(entry)
        return entry.describe(), _first_process(wall)

    def _stream(self, message: Message) -> Answer:
        return None, [self._entry(message).wall.open_stream().detach()]

    def _wait(self, message: Message) -> Answer:
        timeout = message.get("timeout")
        bound = _WAIT_SECONDS if timeout is None else min(float(str(timeout)), _WAIT_SECONDS)
        return self._entry(message).wall.wait(bound), []

    def _begin_kill(self, daemon: socket.socket, message: Message) -> None:
        """Begin to end it, while a thread is found that waits for that."""
        with self._lock:
            entry = self._entries.pop(str(message.get("id")), None)
        early = None if entry is None else _early(entry.wall)
        if early is not None:
            with contextlib.suppress(SandboxError):  # a third party's: the kill goes on
                early.begin_kill()
        try:
            self._submit(message, self._kill, daemon, message, entry)
        except RuntimeError:  # we are ending
            if entry is not None:
                self._free(entry)
            raise

    def _kill(self, daemon: socket.socket, message: Message, entry: HeldWall | None) -> None:
        """Answered once nothing runs in it any more, before what it held is freed."""

        def end(_: Message) -> Answer:
            if entry is None:
                return False, []
            early = _early(entry.wall)
            if early is not None:
                early.end()
            else:
                entry.wall.kill()
            return True, []

        self._answer_with(daemon, message, end)
        if entry is not None:
            self._free(entry)

    def _renew(self, message: Message) -> Answer:
        entry = self._entry(message)
        entry.deadline = after(message.get("lease"))
        if "env" in message:  # one that was made ahead has its owner's variables only now
            env = typed.convert(message["env"], dict[str, str])
            entry.spec = msgspec.structs.replace(entry.spec, env=env)
        return True, []

    def _perform(self, ability: Ability[Any], method: Method, message: Message) -> Answer:
        entry = self._entry(message)
        wall = ability.of(entry.wall)
        if wall is None:
            raise InvalidInput(f"sandbox {entry.id} cannot {method.name}")
        given = typed.convert(message, method.arguments)
        call = partial(getattr(wall, method.name), *msgspec.structs.astuple(given))
        if method.paused is None and not method.in_spec:
            value = msgspec.to_builtins(call())
        else:
            with entry.lock:
                value = msgspec.to_builtins(call())
                if method.paused is not None:
                    entry.paused = method.paused
                if method.in_spec:  # a daemon that comes up later is told of it
                    anew = msgspec.structs.asdict(given)
                    entry.spec = msgspec.structs.replace(entry.spec, **anew)
        # A daemon of an older version asks for no file.
        in_file = method.in_file and message.get("file")
        return (None, [wire.to_file(value)]) if in_file else (value, [])

    def _shutdown(self, _: Message) -> Answer:
        self.closing.set()
        return True, []

    def _entry(self, message: Message) -> HeldWall:
        with self._lock:
            entry = self._entries.get(str(message.get("id")))
        if entry is None:
            raise BackendLost(
                f"sandbox {message.get('id')} has ended", remediation="create a new sandbox"
            )
        return entry

    def _all(self) -> list[HeldWall]:
        with self._lock:
            return list(self._entries.values())

    def _backend(self, name: str) -> Backend:
        with self._lock:
            if name not in self._backends:
                self._backends[name] = self._load(name)
            return self._backends[name]

    def _end(self, entry: HeldWall, reason: str, why: str = "") -> None:
        with self._lock:
            if self._entries.pop(entry.id, None) is None:
                return
        try:
            self._free(entry)
        finally:  # the daemon hears of it even where it left something behind
            self._tell({"event": "ended", "id": entry.id, "reason": reason, "why": why})

    def _free(self, entry: HeldWall) -> None:
        """Kill it. Where that fails and it lives on it is held again, and its lease ends soon."""
        try:
            entry.wall.kill()
        except backends.ANYTHING:
            if entry.wall.alive():
                entry.deadline = after(_AGAIN_SECONDS)
                with self._lock:
                    self._entries[entry.id] = entry
            raise

    def _ending(self, id_: str) -> Cause | None:
        with self._lock:
            entry = self._entries.get(id_)
            if entry is None:
                return self._last_seen.get(id_, NOT_SEEN).ending
        return entry.ending()

    def _counters(self, message: Message) -> Mapping[str, int]:
        with self._lock:
            last = self._last_seen.get(str(message.get("id")), NOT_SEEN)
        return last.counters or self._entry(message).wall.counters()

    def _keep(self, id_: str, last: LastSeen) -> None:
        """Keep it for whoever asks late: a command's follower looks at its stream first."""
        with self._lock:
            self._last_seen[id_] = last
            while len(self._last_seen) > _MAX_ENDINGS:
                del self._last_seen[next(iter(self._last_seen))]


def _built(backend: Backend, plan: Plan, folder: object) -> Wall:
    """``folder`` is the state of a snapshot to begin with, or None."""
    if folder is None:
        return others.launch(backend, plan)
    restores = abilities.FORK.of(backend)
    if restores is None:
        raise incapable(backend.name, abilities.FORK, "restore")
    return others.restore(backend, restores, plan, str(folder))


def _early(wall: object) -> EndsEarly | None:
    """Return it where it ends early; not a third party's that breaks as it is asked whether it
    does."""
    with contextlib.suppress(SandboxError):
        return abilities.ENDS_EARLY.of(wall)
    return None


def _first_process(wall: object) -> list[int]:
    """Return the pidfd by which the daemon itself can end the wall, and see that it has."""
    early = _early(wall)
    pidfd = None if early is None else early.first_process()
    return [] if pidfd is None else [pidfd]


def _unknown(message: Message) -> Answer:
    raise InvalidInput(f"the supervisor does not know {message.get('op')!r}")
