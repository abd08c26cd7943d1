"""The commands of a daemon's sandboxes: begun, followed, found again, and after a restart gone on
with where the sandbox outlived the daemon."""

import contextlib
import contextvars
import os
import threading
import time
from base64 import b64decode
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Set
from signal import SIGKILL

import msgspec

from agentd.daemon.execution import Execution
from agentd.daemon.observe import meter, trace
from agentd.daemon.pipeline import Pipeline
from agentd.daemon.service.command import ENDED, RUNNING, Command
from agentd.daemon.service.live import Live
from agentd.daemon.service.past import Past
from agentd.daemon.service.quotas import Ledger
from agentd.daemon.store.records import ProcessRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model import context, options
from agentd.model.api import ExecBody, ProcessView, ResultView
from agentd.model.errors import AgentdError, Full, InvalidInput, NotFound
from agentd.model.principal import Principal
from agentd.model.result import Exit
from agentd.model.spec import ExecRequest
from agentd.sandbox import guard
from agentd.sandbox.journal.journals import Journals

# A thread each. A principal may start one more while it has fewer than are left: alone it has half
# of them, and there are always some for the next.
MAX_RUNNING = 2048
MAX_KEPT = 256  # ended commands of one sandbox, in memory
_MAX_STDIN = 64 << 20


class Commands:
    """Thread-safe."""

    def __init__(
        self,
        store: SqliteStore,
        pipeline: Pipeline,
        journals: Journals,
        ledger: Ledger,
        counts: meter.Meter = meter.NONE,
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._journals = journals
        self._ledger = ledger
        self._meter = counts
        self._lock = threading.Lock()
        self._running: dict[str, Command] = {}
        self._of_principal: Counter[str] = Counter()  # that run
        self._of: dict[str, dict[str, Command | Past]] = {}  # by sandbox
        # Sandboxes taken over whose ended commands nobody has asked for yet.
        self._unread: set[str] = set()
        self._waiting: dict[int, list[Command]] = {}  # calls that return with a command's end
        self.taken_over: set[str] = set()  # requests of the daemon before whose commands live on
        self.count = 0

    def exec(self, who: Principal, live: Live, body: ExecBody) -> ResultView:
        """To its end. Its output and its record are written before the answer is given; how it
        ended is on disk, in the audit log."""
        stdin = _stdin(body)
        with self._ledger.command(who.name), self._awaited() as awaited:
            command = self._begin(who, live, body, detached=False, feeds=bool(stdin))
            awaited.append(command)
            if stdin:
                self._feed(command, stdin)
            with context.waiting_client().telling(command.let_go):
                view = command.drive(keep=True)
        self._over(who, command)
        # An answer that is recorded itself is written behind this one, and waits for both.
        self._record(who, command, wait=context.recorded() is None)
        if command.unrecorded is not None:
            raise command.unrecorded
        return view

    def start(self, who: Principal, live: Live, body: ExecBody) -> ProcessView:
        """Returns once it has started. It outlives the daemon where its sandbox does."""
        stdin = _stdin(body)
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._ledger.command(who.name))
            feeds = body.stdin_open or bool(stdin)
            command = self._begin(who, live, body, detached=True, feeds=feeds)
            undo.callback(self._over, who, command)
            over = undo.pop_all()
        recorded = threading.Event()

        def run() -> None:
            try:
                if stdin:
                    self._feed(command, stdin, eof=not body.stdin_open)
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
            _begin_thread(command, run)
        except Full:
            over.close()
            raise
        try:
            self._record(who, command)
        except BaseException:
            command.kill()  # who is told that it was not begun does not have it going on
            raise
        finally:
            recorded.set()
        return command.view()

    def all(self, live: Live) -> list[Command | Past]:
        """Oldest first."""
        self._remember(live)
        with self._lock:
            return list(self._of.get(live.id, {}).values())

    def get(self, live: Live, id_: str) -> Command | Past:
        """By its id or its tag, the newest with that. Raises NotFound."""
        self._remember(live)
        with self._lock:
            known = self._of.get(live.id, {})
            found = known.get(id_)
            if found is None:
                tagged = [c for c in known.values() if c.tag == id_ and c.tag is not None]
                found = tagged[-1] if tagged else None
        if found is None:
            raise NotFound(f"sandbox {live.id} has no process {id_[:64]!r}")
        return found

    def running(self) -> int:
        with self._lock:
            return len(self._running)

    def now(self) -> list[Command]:
        """Those that run."""
        with self._lock:
            return list(self._running.values())

    def sandbox_ended(self, live: Live) -> None:
        """Its commands end with it; their output stays until it is trimmed."""
        with self._lock:
            self._of.pop(live.id, None)
            self._unread.discard(live.id)

    def wait_idle(self, seconds: float) -> bool:
        """Until nothing runs whose caller waits for its end; False when something still does.

        What was started without waiting goes on in its sandbox when we end.
        """
        deadline = time.monotonic() + seconds
        while self._waiting and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self._waiting

    def end_awaited(self) -> None:
        """End those whose caller waits: it is told so."""
        with self._lock:
            going = [command for one in self._waiting.values() for command in one]
        for command in going:
            command.kill()

    @contextlib.contextmanager
    def _awaited(self) -> Iterator[list[Command]]:
        one: list[Command] = []
        with self._lock:
            self._waiting[id(one)] = one
        try:
            yield one
        finally:
            with self._lock:
                del self._waiting[id(one)]

    def adopt(self, live: Live, ended: Set[str] = frozenset()) -> int:
        """Go on with what runs in a sandbox that outlived the daemon before: how many. Of the
        requests ``ended`` the end is written down already."""
        adopted = 0
        with self._lock:
            self._unread.add(live.id)
        for record in self._store.find(ProcessRecord, sandbox=live.id, state=RUNNING):
            try:
                self._take_over(live, record, record.request in ended)
                adopted += 1
            except (AgentdError, OSError):
                # It ended while nobody looked, and the agent has forgotten it.
                self._put(msgspec.structs.replace(record, state=ENDED, ended=time.time()))
        return adopted

    def end_unheard(self, live: Live, started: Iterable[tuple[str, str]]) -> None:
        """Kill what was ``started`` in it, by (request, process), right before the daemon was
        killed: nobody was told of it, and no record would find it again."""
        for request, process in started:
            if request not in self.taken_over:
                with contextlib.suppress(AgentdError, OSError):
                    live.handle.guest.tell(
                        "signal", tag=process, signal=int(SIGKILL), target="group"
                    )

    def _begin(
        self, who: Principal, live: Live, body: ExecBody, *, detached: bool, feeds: bool
    ) -> Command:
        live.require_running("run a command in it")
        request = request_of(body, feeds or body.stdin_open)
        id_ = _new_id()
        if detached:
            request = msgspec.structs.replace(request, tag=id_)
        self._room(who)
        journal = self._journals.create(f"{live.id}/{id_}")
        if carried := trace.carrier():
            request = msgspec.structs.replace(request, env={**carried, **request.env})
        about: trace.Values = {"agentd.process": id_, "agentd.backend": live.handle.backend}
        try:
            with trace.span("guest.start", about):
                execution = self._pipeline.start(
                    who,
                    live.handle,
                    request,
                    detached=detached,
                    labels=live.record.labels,
                )
        except BaseException:
            self._journals.remove(f"{live.id}/{id_}")
            raise
        command = Command(
            id_, live, request.argv, body.tag, execution, journal, pty=body.pty is not None
        )
        self._keep(command, who)
        return command

    def _take_over(self, live: Live, record: ProcessRecord, told: bool) -> None:
        journal = self._journals.open(record.journal or f"{live.id}/{record.id}")
        offsets = journal.offsets
        place = offsets["stdout"] or offsets["pty"], offsets["stderr"]
        who = Principal(record.principal, frozenset(), "local")
        admission = None
        if (gate := self._pipeline.gate) is not None:
            asked, began = ExecRequest(record.argv), record.created
            admission = gate.adopt(who, live.handle, asked, record.request, began, ended=told)
        execution = Execution.attached(live.handle, record.id, place, admission)
        self.taken_over.add(record.request)
        command = Command(
            record.id,
            live,
            record.argv,
            record.tag,
            execution,
            journal,
            pty=offsets["pty"] > 0,
            adopted=True,
        )
        command.started = record.created
        self._keep(command, who)

        def run() -> None:
            command.drive(keep=False)
            self._over(who, command)
            self._record(who, command)

        threading.Thread(target=run, name=command.id, daemon=True).start()

    def _remember(self, live: Live) -> None:
        """What ended in it under the daemon before, once."""
        if live.id not in self._unread:
            return
        newest: deque[ProcessRecord] = deque(maxlen=MAX_KEPT)
        after: tuple[str, ...] = ()
        while page := self._store.find(ProcessRecord, after=after, sandbox=live.id, state=ENDED):
            newest += page
            after = (page[-1].id,)
        with self._lock:
            if live.id in self._unread:
                self._unread.discard(live.id)
                past = {one.id: Past(live, one, self._journals) for one in newest}
                self._of[live.id] = {**past, **self._of.get(live.id, {})}

    def _feed(self, command: Command, data: bytes, *, eof: bool = True) -> None:
        """Before it is driven: what cannot be written at once is kept by the transport."""
        command.give(data, eof=eof)

    def _room(self, who: Principal) -> None:
        with self._lock:
            mine = self._of_principal[who.name]
            if mine >= MAX_RUNNING - len(self._running):
                raise Full(
                    f"{mine} commands of {who.name} run already",
                    cause=f"{len(self._running)} run, and {MAX_RUNNING} are the most",
                    remediation="come back when some have ended",
                )

    def _keep(self, command: Command, who: Principal) -> None:
        with self._lock:
            self.count += 1
            self._of_principal[who.name] += 1
            self._running[command.id] = command
            known = self._of.setdefault(command.live.id, {})
            known[command.id] = command
            if len(known) > MAX_KEPT:
                ended = [c for c in known.values() if c.result is not None]
                for old in ended[: len(known) - MAX_KEPT]:
                    del known[old.id]

    def _over(self, who: Principal, command: Command) -> None:
        with self._lock:
            if self._running.pop(command.id, None) is not None:
                self._of_principal[who.name] -= 1
                if not self._of_principal[who.name]:
                    del self._of_principal[who.name]
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
        view = command.result
        if view is not None:
            # The next daemon asks nobody for the output of what has ended: it is on disk first.
            command.journal.flush(fast=True)
        record = ProcessRecord(
            id=command.id,
            sandbox=command.live.id,
            principal=who.name,
            argv=command.argv,
            state=RUNNING if view is None else ENDED,
            created=command.started,
            tag=command.tag,
            pid=command.pid,
            ended=None if view is None else time.time(),
            exit=None
            if view is None
            else Exit(view.exit_code, view.signal, view.cause, view.usage),
            journal=f"{command.live.id}/{command.id}",
            request=command.request_id,
        )
        self._put(record, wait=wait)

    def _put(self, record: ProcessRecord, *, wait: bool = True) -> None:
        """Written, not synced: a loss of power takes along the sandbox that it is found by, and
        what came of the command is in the audit log, which is synced."""
        if wait:
            self._store.write(lambda t: t.put(record), synced=False)
        else:
            self._store.submit(lambda t: t.put(record), synced=False, urgent=False)


def _begin_thread(command: Command, run: Callable[[], None]) -> None:
    """It goes on in the request's own context: its id, and its trace.

    Raises Full where no thread is left; the command is killed then.
    """
    target = contextvars.copy_context().run
    thread = threading.Thread(target=target, args=(run,), name=command.id, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        command.abandon(error)
        raise Full(
            "no thread can be started for the command",
            cause=str(error),
            remediation="come back when others have ended, or raise the limit of processes",
        ) from error


def _new_id() -> str:
    """The milliseconds it was made in, then chance: records that come one after another lie on the
    same page of the store."""
    when = time.time_ns() // 1_000_000 & (1 << 40) - 1
    return f"prc-{when:010x}{os.urandom(5).hex()}"


def request_of(body: ExecBody, stdin: bool) -> ExecRequest:
    """Raises InvalidInput."""
    wanted: options.ExecOptions = {
        "cwd": body.cwd,
        "env": body.env,
        "timeout": body.timeout,
        "limits": body.limits,
    }
    return options.exec_request(body.cmd, stdin=stdin, pty=body.pty, **wanted)


def _stdin(body: ExecBody) -> bytes:
    """What it reads at first. Raises InvalidInput."""
    if body.stdin is None:
        return b""
    try:
        if body.stdin_encoding == "base64":
            data = b64decode(body.stdin, validate=True)
        elif body.stdin_encoding == "utf-8":
            data = body.stdin.encode()
        else:
            raise ValueError("it is neither utf-8 nor base64")
    except ValueError as error:
        raise InvalidInput("stdin is not encoded as it says", cause=str(error)) from error
    if len(data) > _MAX_STDIN:
        raise InvalidInput(
            f"stdin has {len(data)} bytes, over {_MAX_STDIN}",
            remediation="write them to a file in the sandbox",
        )
    return data
