"""A daemon's commands: begun, followed, found again, and gone on with by the next daemon."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import Future
from functools import partial

import msgspec

from agentd.daemon import events
from agentd.daemon.admission.gate import Gate
from agentd.daemon.commands import begun
from agentd.daemon.commands.again import BeginAgain, kill_once_it_goes_on
from agentd.daemon.commands.begin import (
    BeginDetached,
    BeginStreamed,
    check_waited,
    new_id,
    request_of,
    size_of_words,
    stdin_of,
)
from agentd.daemon.commands.command import Command, Emit
from agentd.daemon.commands.ends import AwaitedCommands, completed
from agentd.daemon.commands.listed import ENDED, MAX_KEPT, RUNNING, Listed, Register
from agentd.daemon.commands.parts import EndedParts
from agentd.daemon.commands.past import Past
from agentd.daemon.commands.threads import begin_thread
from agentd.daemon.observe import meter, trace
from agentd.daemon.sandboxes.live import Live
from agentd.daemon.service.quotas import Ledger
from agentd.daemon.store.records import ProcessRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.daemon.store.view import Transaction
from agentd.model import context
from agentd.model.api import ExecBody, ProcessView, ResultView
from agentd.model.errors import AgentdError, Full
from agentd.model.holds import Holds
from agentd.model.principal import Principal
from agentd.model.result import Result
from agentd.model.spec import ExecRequest
from agentd.sandbox import guard
from agentd.sandbox.journal.journals import Journals

MAX_GIVEN = 512 << 20  # bytes of stdin that is not read, and of words; of one caller half
_FREE = 64 << 10  # of each that count for nobody
_GIVEN = "are held of stdin, words and variables of commands", "have commands read theirs, or end"


class Commands:
    """Owns a daemon's commands. Thread-safe."""

    def __init__(
        self,
        store: SqliteStore,
        gate: Gate,
        journals: Journals,
        ledger: Ledger,
        counts: meter.Meter = meter.NONE,
        publish: events.Publish = events.nobody,
    ) -> None:
        self._store = store
        self._gate = gate
        self._journals = journals
        self._ledger = ledger
        # Of commands that nobody waits for: no request holds it any more.
        self._given = Holds(MAX_GIVEN, *_GIVEN)
        self._meter = counts
        self._lock = threading.Lock()
        self._register = Register(publish)
        # Sandboxes taken over whose ended commands nobody has asked for yet.
        self._unread: set[str] = set()
        self.awaited = AwaitedCommands()
        self.parts = EndedParts(self._discard)
        self.taken_over: set[str] = set()  # requests of the daemon before whose commands live on
        self.count = 0  # of those that no call is the reason of

    def exec(self, who: Principal, live: Live, body: ExecBody) -> ResultView:
        """Run one to its end. Its output and its record are written before the answer is given;
        how it ended is on disk, in the audit log."""
        check_waited(body)
        stdin = stdin_of(body)
        with self._ledger.command(who.name):
            command = self._begin(who, live, body, detached=False, feeds=bool(stdin))
            with self.awaited.one(command), context.waiting_client().telling(command.cancel):
                if stdin:
                    command.feed(stdin)
                command.drive(keep=True)
        self._over(who, command)
        # An answer that is recorded itself is written behind this one, and waits for both.
        self._record(who, command, wait=context.recorded() is None)
        if command.unrecorded is not None:
            raise command.unrecorded
        return command.answer()

    def start(self, who: Principal, live: Live, body: ExecBody) -> ProcessView:
        """Start one; it outlives the daemon where its sandbox does."""
        unread, eof = [stdin_of(body)], not body.stdin_open
        feeds, fed = bool(unread[0]), Future[None]()
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._ledger.command(who.name))
            undo.callback(self._given.hold(who.name, max(0, size_of_words(body) - _FREE)))
            give_back = self._given.hold(who.name, max(0, len(unread[0]) - _FREE))
            undo.callback(give_back)
            fed.add_done_callback(lambda _: give_back())
            command = self._begin(who, live, body, detached=True, feeds=feeds or not eof)
            undo.callback(self._over, who, command)
            over = undo.pop_all()
        recorded = threading.Event()

        def run() -> None:
            try:
                if feeds:
                    command.feed(unread.pop(), eof=eof, done=fed)
                command.drive(keep=False)
            except Exception as error:
                guard.tell(error)
                command.abandon(error)
            finally:
                over.close()
                # Not before it is known to run: that record would stay.
                recorded.wait()
                self._record(who, command)

        try:
            begin_thread(command, run)
        except Full:
            over.close()
            raise
        try:
            self._record(who, command)
        except BaseException:
            with contextlib.suppress(AgentdError):
                command.kill()  # who is told that it was not begun does not have it going on
            raise
        finally:
            recorded.set()
        return command.view()

    def all(self, live: Live) -> list[Command | Past]:
        """List those of a sandbox, the oldest first."""
        self._remember(live)
        return self._register.all(live.id)

    def get(self, live: Live, id_: str) -> Command | Past:
        """Find one by its id or its tag, the newest with that. Raises NotFound."""
        self._remember(live)
        return self._register.get(live.id, id_)

    def running(self) -> int:
        return len(self._register.running())

    def now(self) -> list[Command]:
        """Return those that run."""
        return self._register.running()

    def sandbox_ended(self, live: Live) -> None:
        """Forget its commands, which end with it; their output stays until it is trimmed."""
        self._register.forget(live.id)
        with self._lock:
            self._unread.discard(live.id)

    def adopt(self, live: Live, ended: Set[str] = frozenset()) -> int:
        """Go on with what runs in a sandbox that outlived the daemon before: how many. Of the
        requests ``ended`` the end is written down already."""
        adopted = 0
        with self._lock:
            self._unread.add(live.id)
        for record in self._recorded(live, RUNNING):
            try:
                self._take_over(live, record, record.request in ended)
                adopted += 1
            except (AgentdError, OSError):
                # It ended while nobody looked, and the agent has forgotten it.
                over = msgspec.structs.replace(record, state=ENDED, ended=time.time())
                self._store.write(partial(Transaction.put, record=over), synced=False)
        return adopted

    def _recorded(self, live: Live, state: str) -> Iterator[ProcessRecord]:
        after: tuple[str, ...] = ()
        while page := self._store.find(ProcessRecord, after=after, sandbox=live.id, state=state):
            yield from page
            after = (page[-1].id,)

    def list_begun(self, live: Live) -> None:
        """List what its template has begun in it before it was anybody's. What cannot be listed
        goes on all the same: that is no reason to refuse the sandbox."""
        who = Principal(live.record.principal, frozenset(), "local")
        with contextlib.suppress(AgentdError, OSError):
            command = begun.found(live, self._journals)
            if command is None:
                return
            self._count(who, command)
            with contextlib.suppress(AgentdError):  # of a full disk: it is followed all the same
                self._record(who, command)  # before its end, which is to be the last word
            try:
                self._follow(who, command, contextlib.ExitStack())
            except RuntimeError:  # no thread is left
                self._register.release(who, command, forget=True)
                command.close()

    def _follow(self, who: Principal, command: Command, over: contextlib.ExitStack) -> None:
        """Drive it in a thread, and close ``over`` at its end."""

        def run() -> None:
            with over:
                command.drive(keep=False)
                self._over(who, command)
            with contextlib.suppress(AgentdError):  # of a full disk: the next daemon finds it ended
                self._record(who, command)

        threading.Thread(target=run, name=command.id, daemon=True).start()

    def end_unheard(
        self, live: Live, started: Iterable[tuple[str, str]], later: Callable[[str], None]
    ) -> Iterator[str]:
        """Kill what was ``started`` in it, by (request, process), right before the daemon was
        killed: nobody was told of it, and no record would find it again. Yields the requests of a
        sandbox that is paused: killed once that goes on, which ``later`` is told."""
        for request, process in started:
            if request not in self.taken_over and kill_once_it_goes_on(
                live.handle, process, partial(later, request)
            ):
                yield request

    def part(
        self,
        who: Principal,
        live: Live,
        request: ExecRequest,
        stdin: bytes,
        emit: Emit | None,
        cancel: int,
        kept: list[str] | None = None,
    ) -> Result:
        """Run a command of a call, which was decided as a whole, to its end. While it runs it is
        listed and can be followed; its output is in the result, and its journal goes soon after
        that: unless it is to stay, as one of ``exec`` does, which ``kept`` is told the id of."""
        self._register.room(who)
        listed = self._listed(live, request.argv)
        try:
            command = Command(
                live.handle, BeginStreamed(completed(request, live.handle)), None, listed
            )
        except BaseException:
            self._discard(listed)
            raise
        self._register.add(who, command)
        try:
            if kept is not None:
                self._record(who, command)  # the next daemon has it, too, should we be killed
                kept.append(command.id)
            with self.awaited.one(command):
                if stdin:
                    command.feed(stdin)
                return command.follow(emit, cancel)
        except Exception as error:
            command.abandon(error)
            raise
        finally:
            self._register.release(who, command, forget=kept is None)
            if kept is None:
                self.parts.add(listed)
            else:
                self._record(who, command)

    def _begin(
        self, who: Principal, live: Live, body: ExecBody, *, detached: bool, feeds: bool
    ) -> Command:
        live.require_running("run a command in it")
        request = request_of(body, feeds or body.stdin_open)
        self._register.room(who)
        listed = self._listed(live, request.argv, tag=body.tag, pty=body.pty is not None)
        if detached:
            request = msgspec.structs.replace(request, tag=listed.id)
        if carried := trace.carrier():
            request = msgspec.structs.replace(request, env={**carried, **request.env})
        about: trace.Values = {"agentd.process": listed.id, "agentd.backend": live.handle.backend}
        try:
            with trace.span("guest.start", about):
                whole = completed(request, live.handle)
                labels = live.record.labels
                within, admission = self._gate.command(who, live.handle, whole, labels)
                begin = BeginDetached(within) if detached else BeginStreamed(within)
                command = Command(live.handle, begin, admission, listed)
        except BaseException:
            self._discard(listed)
            raise
        self._count(who, command)
        return command

    def _listed(
        self, live: Live, argv: tuple[str, ...], *, tag: str | None = None, pty: bool = False
    ) -> Listed:
        id_ = new_id()
        return Listed(id_, live, argv, self._journals.create(f"{live.id}/{id_}"), tag=tag, pty=pty)

    def _discard(self, listed: Listed) -> None:
        listed.errands.close()
        with contextlib.suppress(OSError):
            self._journals.remove(f"{listed.live.id}/{listed.id}")

    def _take_over(self, live: Live, record: ProcessRecord, told: bool) -> None:
        journal = self._journals.open(record.journal or f"{live.id}/{record.id}")
        offsets = journal.offsets
        place = offsets["stdout"] or offsets["pty"], offsets["stderr"]
        who = Principal(record.principal, frozenset(), "local")
        asked, began = ExecRequest(record.argv), record.created
        admission = self._gate.adopt(who, live.handle, asked, record.request, began, ended=told)
        listed = Listed(
            record.id,
            live,
            record.argv,
            journal,
            tag=record.tag,
            pty=offsets["pty"] > 0,
            started=began,
            adopted=True,
        )
        try:
            again = BeginAgain(live.handle, record.id, place, record.pid)
            command = Command(live.handle, again, admission, listed)
        except BaseException:
            listed.errands.close()
            raise
        self.taken_over.add(record.request)
        self._count(who, command)
        counted = contextlib.ExitStack()
        counted.enter_context(self._ledger.command(who.name, force=True))
        self._follow(who, command, counted)

    def _remember(self, live: Live) -> None:
        """Read once what ended in it under the daemon before."""
        if live.id not in self._unread:
            return
        newest = deque(self._recorded(live, ENDED), MAX_KEPT)
        with self._lock:
            if live.id in self._unread:
                self._unread.discard(live.id)
                past = {one.id: Past(live, one, self._journals) for one in newest}
                self._register.add_past(live.id, past)

    def _count(self, who: Principal, command: Command) -> None:
        self._register.add(who, command)
        with self._lock:
            self.count += 1

    def _over(self, who: Principal, command: Command) -> None:
        self._register.release(who, command)
        self._ledger.used_cpu(who.name, command.usage.cpu_ms / 1000)
        self._meter.command(command)
        view = command.result
        if view is not None:
            end: trace.Values = {
                "agentd.cause": str(view.cause.code),
                "agentd.exit_code": view.exit_code or 0,
            }
            trace.past("guest.command", command.usage.wall_ms / 1000, end)

    def _record(self, who: Principal, command: Command, *, wait: bool = True) -> None:
        """Written, not synced: a loss of power takes along the sandbox that it is found by, and
        what came of the command is in the audit log, which is synced."""
        view, listed = command.result, command.listed
        if view is not None:
            if listed.is_shortened:
                return  # it is written: it had ended before who began it wrote that
            # The next daemon asks nobody for the output of what has ended: it is on disk first.
            listed.journal.flush(fast=True)
        record = listed.record(who.name, command.pid, command.request_id, view)
        put = partial(Transaction.put, record=record)
        if wait:
            self._store.write(put, synced=False)
        else:
            self._store.submit(put, synced=False, urgent=False)
        if view is not None:
            listed.shorten()
