"""The host's end of the relay: starts it, hands sandboxes over, takes what it tells, starts the
next where one died.

It holds a copy of each sandbox's sockets. What a sandbox dials while there is no relay waits at
them for the next; where none can be had they are closed, and programs get ECONNREFUSED.
"""

import atexit
import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from agentd.egress.admitted import Admitted
from agentd.egress.deaths import DeathCount
from agentd.egress.hostnames import HostFiles
from agentd.egress.owed import OwedAnswers
from agentd.egress.process import RelayProcess, TakeUser, pack
from agentd.egress.tally import TALLY
from agentd.egress.terminating import Reading, Terminating
from agentd.model.errors import InvalidInput, SandboxError

_START_SECONDS, _REST_SECONDS, _SYNC_SECONDS = 60.0, 20.0, 10.0
_LOOK_SECONDS = 5.0  # between looks at resolv.conf and hosts, and at the relay
_HANG_SECONDS = 60.0  # without a word: a busy machine's takes its time
T = TypeVar("T")
_keepers: "weakref.WeakSet[RelayKeeper]" = weakref.WeakSet()


class RelayKeeper:
    """Keeps a relay; one a process: its relay serves all sandboxes of that. Has a thread while
    there is a relay."""

    def __init__(self, take: TakeUser | None = None, files: HostFiles | None = None) -> None:
        """``take`` gives who a relay is, where we are root: an id that owns nothing and that no
        other process has. Where it has none to give, or raises SandboxError, the relay is nobody.
        """
        self._take_user = take
        self._files = files or HostFiles()
        self._changed = threading.Condition()
        #: Has the terminator, once a sandbox needs it.
        self.terminating = Terminating(self._changed, take, self._link, self._take_rows)
        self._process: RelayProcess | None = None
        self._thread: threading.Thread | None = None
        self._ready = False
        self._failure = ""
        self._closed = False
        self._resting = False
        self._shut = False  # the relay of now is ended by us, and does not die
        self._ids = 0
        self._owed = OwedAnswers(self._changed, lambda message: self._send(pack(message)))
        self._generation = 0
        self._deaths = DeathCount()
        self._admitted: dict[int, Admitted] = {}
        #: What holds of the relay, in its own words; empty before it is ready.
        self.confinement: tuple[str, ...] = ()
        #: What went wrong within the relay, the last few.
        self.faults: list[str] = []
        _keepers.add(self)

    @property
    def pid(self) -> int:
        """Return the relay's, 0 where there is none."""
        process = self._process
        return 0 if process is None else process.pid

    def begin(self) -> None:
        """Start the relay, unless there is one, and do not wait for it. Raises SandboxError."""
        with self._changed:
            self._begin()

    def admit(
        self,
        sockets: Sequence[socket.socket],
        table: Mapping[str, Any],
        reading: Reading | None = None,
    ) -> Admitted:
        """Let the relay serve the sockets that ``linux.anyip`` made, which are the keeper's from
        now on, by a table of ``egress.compile``; ``reading`` where connections may be read.

        Raises InvalidInput for a table that is too large, SandboxError where there is no relay;
        the sockets are closed then.
        """
        with self._changed:
            self._ids += 1
            admitted = Admitted(self, self._ids, sockets, table)
            try:
                _check_room(admitted, table)
                self._begin()
                self._await_ready()
                if reading is not None:
                    self.terminating.admit(admitted.id, reading, table)
                try:
                    self._hand_over(admitted)
                except SandboxError:  # it died just now, and another comes
                    self._ready = False
                    self._await_ready()
                    self._hand_over(admitted)
            except BaseException:
                admitted.close_sockets()
                self.terminating.release(admitted.id)
                raise
            self._admitted[admitted.id] = admitted
            TALLY.begin(admitted)
            return admitted

    def set(self, admitted: Admitted, table: Mapping[str, Any]) -> None:
        with self._changed:
            _check_room(admitted, table)
            self.of_terminator(admitted, lambda reading: reading.set(admitted.id, table))
            admitted.table = table
            admitted.asked.keep(table)
            self.tell({"set": admitted.id, "table": table})

    def tell(self, message: Mapping[str, Any]) -> None:
        """Tell the relay, if there is one; the next is told by what is kept here."""
        with self._changed, contextlib.suppress(SandboxError):
            if self._ready:
                self._send(pack(message))

    def of_terminator(self, admitted: Admitted, ask: Callable[[Terminating], T]) -> T:
        """Ask the terminator. Raises SandboxError where the sandbox has ended, and as ``ask``."""
        with self._changed:
            if admitted.id not in self._admitted:
                raise SandboxError("the sandbox has no network any more")
            return ask(self.terminating)

    def sync(self, admitted: Admitted) -> None:
        """Wait until it is told what the sandbox has done until now, by a relay and a terminator
        that are not gone; not for long."""
        with self._changed:
            with contextlib.suppress(SandboxError):
                self.terminating.sync(admitted.id)
            generation = self._generation
            if self._ready:
                with contextlib.suppress(SandboxError):
                    self._owed.wait(
                        _SYNC_SECONDS, lambda: not self._ready or self._generation != generation
                    )

    def release(self, admitted: Admitted) -> None:
        with self._changed:
            self._deaths.forget(admitted.id)
            if self._admitted.pop(admitted.id, None) is not None:
                TALLY.end(admitted)
                self.tell({"release": admitted.id})
            self.terminating.release(admitted.id)
            admitted.close_sockets()

    def rest(self) -> None:
        """End the relay where it serves nobody: the next sandbox starts another."""
        with self._changed:
            if self._admitted or self._thread is None:
                return
            self.terminating.shut()
            self._resting, self._shut, self._ready = True, True, False
            if self._process is not None:
                self._process.shut()
            self._changed.wait_for(lambda: self._thread is None or not self._resting, _REST_SECONDS)

    def close(self) -> None:
        """End the relay and all that it serves. Idempotent."""
        with self._changed:
            self._closed = True
            self.terminating.close()
            thread = self._thread
            if self._process is not None:
                self._process.shut()
            self._give_up("it was closed")
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.terminating.join()

    def forget_after_fork(self) -> None:
        """Let go, in a child of ours: what we hold is the parent's, and would outlive it there.
        Whoever had the lock is in the parent."""
        self._changed = threading.Condition()
        self.terminating.forget_after_fork()
        process, self._process = self._process, None
        if process is not None:
            process.abandon()
        for admitted in self._admitted.values():
            admitted.close_sockets()
        self._admitted, self._thread = {}, None
        self._closed, self._ready, self._failure = True, False, "it is of the parent process"

    # --- under the lock ---

    def _begin(self) -> None:
        if self._closed:
            raise SandboxError("the network relay was closed")
        self._resting = False
        if self._thread is None:
            self._failure, self._deaths, self._shut = "", DeathCount(), False
            self._start()
            self._thread = threading.Thread(target=self._keep, name="agentd-egress", daemon=True)
            self._thread.start()

    def _await_ready(self) -> None:
        if not self._changed.wait_for(lambda: self._ready or self._failure, _START_SECONDS):
            raise SandboxError(f"the network relay was not ready within {_START_SECONDS:g} s")
        if not self._ready:
            raise SandboxError("there is no network relay", cause=self._failure)

    def _start(self) -> None:
        """A new process, which is told who it is and not yet ready. Raises SandboxError."""
        self._process = RelayProcess(self._take_user)
        self._generation += 1
        TALLY.starts += 1
        try:
            self._tell_names()
        except SandboxError:
            process, self._process = self._process, None
            process.close()
            raise

    def _tell_names(self) -> None:
        names = self._files.read()
        self._send(pack({"servers": names.servers, "hosts": names.hosts}))

    def _hand_over(self, admitted: Admitted) -> None:
        message = _handed(admitted, admitted.table)
        data = pack(message)
        with contextlib.suppress(InvalidInput):  # of too many its programs have to ask anew
            data = pack({**message, "names": list(admitted.names)})
        self._send(data, admitted.sockets)

    def _send(self, data: bytes, sockets: Sequence[socket.socket] = ()) -> None:
        """Raises SandboxError where it is gone, or takes nothing."""
        if self._process is None:
            raise SandboxError("there is no network relay")
        self._process.send(data, sockets)

    def _link(self, sock: socket.socket) -> None:
        """A relay that is not ready yet is given its way once it is."""
        if self._ready:
            self._send(pack({"terminator": True}), [sock])

    def _give_up(self, why: str) -> None:
        """Nobody serves what was admitted: close it, so that programs are refused at once."""
        self._ready, self._failure = False, why
        for admitted in list(self._admitted.values()):
            admitted.log.close(f"its network was closed: {why}")
            self._cut_off(admitted)
        self._changed.notify_all()

    def _cut_off(self, admitted: Admitted) -> None:
        """Nobody serves this one any more."""
        del self._admitted[admitted.id]
        admitted.close_sockets()
        TALLY.end(admitted)

    # --- the thread ---

    def _keep(self) -> None:
        """Serve one relay after the other, until we are closed or it dies too often."""
        while True:
            assert self._process is not None  # noqa: S101  (for the type checker)
            if wrong := self._process.listen(self._take, self._look, _LOOK_SECONDS):
                self._note(wrong)
            with self._changed:
                self._ready = False
                process, self._process = self._process, None
                culprit = None
                if process is not None:
                    culprit = self._admitted.get(process.worked_for())
                    process.close()
                for admitted in self._admitted.values():
                    admitted.log.cut()
                if self._closed or self._resting or not self._again(culprit):
                    self._thread = None
                    self._changed.notify_all()
                    return

    def _again(self, culprit: Admitted | None) -> bool:
        """Start the next, where the last died as it did something for ``culprit``, or nobody."""
        died, self._shut = not self._shut, False
        TALLY.deaths += died
        why = self._deaths.add(culprit.id if culprit else 0) if died else ""
        if culprit is not None and why:
            culprit.log.close(f"its network was closed: {why}")
            self._cut_off(culprit)
            why = ""
        why = self._failure or why
        while not why:
            try:
                self._start()
                return True
            except SandboxError as error:  # it died before it was told who it is, or there is none
                self._note(str(error))
                TALLY.deaths += 1
                if why := self._deaths.add():
                    why = f"{why}, at last as it began: {error}"
        self._give_up(why)
        return False

    def _look(self) -> None:
        """At the host's files, and at whether a relay that says nothing lives: one that hangs is
        killed, and followed."""
        with self._changed:
            if not self._ready or self._process is None:
                return
            if self._files.changed():
                self._tell_names()
            self._owed.look(_HANG_SECONDS, self._process.kill, ask=bool(self._admitted))

    def _take(self, message: dict[str, Any]) -> None:
        if "rows" in message:
            self._take_rows(message)
            return
        with self._changed:
            if "synced" in message:
                self._owed.answered(message["synced"])
            elif "error" in message:
                self._failure = message["error"]
            else:
                self.confinement = tuple(message["ready"])
                for admitted in self._admitted.values():
                    self._hand_over(admitted)
                self._owed.begin()
                self._ready = True
                self.terminating.relay_changed()
            self._changed.notify_all()

    def _note(self, fault: str) -> None:
        self.faults = [*self.faults[-9:], fault[:2000]]

    def _take_rows(self, message: dict[str, Any]) -> None:
        with self._changed:
            admitted = dict(self._admitted)
        if message["lost"]:
            for each in admitted.values():
                each.log.lost(int(message["lost"]))
        for row in message["rows"]:
            if "fault" in row:
                self._note(str(row["fault"]))
                continue
            found = admitted.get(row.pop("sandbox"))
            if found is None:
                continue
            if "failed" in row:
                self._note(str(row["failed"]))
            found.hear(self._generation, row)


def _check_room(admitted: Admitted, table: Mapping[str, Any]) -> None:
    """Raises InvalidInput where no message has its table, however much it will have moved."""
    pack({**_handed(admitted, table), "moved": 1 << 63})


def _handed(admitted: Admitted, table: Mapping[str, Any]) -> dict[str, Any]:
    """What a relay is told of it: the largest message that has its table."""
    return {"admit": admitted.id, "table": table, "names": [], "moved": admitted.moved}


_shared: RelayKeeper | None = None
_shared_lock = threading.Lock()


def shared(take: TakeUser | None = None) -> RelayKeeper:
    """Return this process' keeper, made now where there is none yet."""
    global _shared  # noqa: PLW0603  (one a process)
    with _shared_lock:
        if _shared is None:
            _shared = RelayKeeper(take)
            atexit.register(_shared.close)
        return _shared


def _forget_after_fork() -> None:
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()
    for keeper in list(_keepers):
        keeper.forget_after_fork()


os.register_at_fork(after_in_child=_forget_after_fork)
