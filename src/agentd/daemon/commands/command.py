"""One command of a sandbox from its start to its Result, whatever started it.

One thread drives it. In a daemon it is listed: it has an id and a journal, others may follow it,
and what they want of it (input, a signal) is done by the driving thread between two rounds.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, NoReturn, cast

import msgspec

from agentd.daemon.commands.ends import (
    CommandEnding,
    CommandLost,
    Digests,
    lost,
    of_result,
    ours,
    with_output,
)
from agentd.daemon.commands.listed import CommandInput, KeptOutput
from agentd.model import context
from agentd.model.control import check_signal, check_window
from agentd.model.errors import AgentdError, BackendLost, GuestError, Refused
from agentd.model.result import Cause, CauseCode, Exit, Result, Usage
from agentd.model.running import HasEnded, Stepped, drive
from agentd.transport.events import Chunk, LostOutput

if TYPE_CHECKING:
    from agentd.daemon.admission.admission import Admission
    from agentd.daemon.commands.begin import Begin
    from agentd.daemon.commands.listed import Listed
    from agentd.model.api import ProcessView, ResultView
    from agentd.model.running import Running
    from agentd.sandbox.journal.journal import Journal
    from agentd.sandbox.manager import SandboxHandle

# Bytes of each stream that an answer holds; all of it is in the journal.
MAX_ANSWER = 16 << 20

_DISCONNECTED = Cause.of(CauseCode.CANCELLED, "the client that waited for it has disconnected")

Emit = Callable[[str, bytes], None]


class Command(Stepped):
    """Runs one command; ``close`` kills what has not ended. Where it is listed, ``write``,
    ``signal``, ``resize``, ``kill``, ``cancel`` and ``view`` are thread-safe; the rest is the
    driving thread's."""

    before: Mapping[str, bytes] = {}  # as ``model.running`` has it: it is held from its start

    def __init__(
        self,
        handle: "SandboxHandle",
        begin: "Begin",
        admission: "Admission | None" = None,
        listed: "Listed | None" = None,
    ) -> None:
        """Begin it. Where that fails ``admission`` is ended, but for one that is not found again:
        its END is written with those of all that were interrupted."""
        named = admission.act.request if admission is not None else context.current()
        self.request_id = named or context.new_id()
        self.result: ResultView | None = None  # of one that is listed, once it has ended; bare
        self.usage = Usage()
        self.unrecorded: AgentdError | None = None  # why its end is not written down
        self._kept: KeptOutput | None = None  # for who waits for its end
        self._listed = listed
        self.listed = cast("Listed", listed)  # of one of a daemon, which lists each
        self.id, self.tag = ("", None) if listed is None else (listed.id, listed.tag)
        self._driver = 0  # the thread that drives it
        self._input = CommandInput()
        self._digests = Digests() if admission is not None else None
        # Of all that it is given to read; not of what somebody types, a password say, nor where the
        # daemon before has given some.
        is_typed = listed is not None and listed.pty
        self._notes_read = not is_typed and begin.place is None
        self._handle = handle
        self._ending = CommandEnding(handle)
        self._known: Result | None = None  # once it has ended, though that is not written down
        # Where an attached one was asked for from, until it is known where it really begins.
        self._place = begin.place
        self._admission = admission if begin.place is None else None
        self.cursors = {"stdout": 0, "stderr": 0}  # of one that is not listed
        self._open = False
        try:
            follows = begin.place is not None  # one that runs, and does so while it is paused
            guest = handle.begin_command(paused=True) if follows else handle.begin_command()
            self._open = True
            self.running: Running = begin(guest)
        except BaseException as error:
            self._end(error)
            raise
        self._admission, self._pid = admission, begin.pid
        self._ending.look()

    # --- what it is ---

    @property
    def journal(self) -> "Journal":
        return self.listed.journal

    @property
    def pid(self) -> int | None:
        """In the sandbox; None before it has started."""
        return self.running.pid or self._pid

    @property
    def exit(self) -> Exit | None:
        return self._ending.lost or self.running.exit

    @property
    def backlog(self) -> int:
        return self.running.backlog

    def view(self) -> "ProcessView":
        return self.listed.view(self.pid, self.result)

    # --- from its output to its end, in the driving thread ---

    def step(
        self, timeout: float | None = None, extra_fds: Sequence[int] = ()
    ) -> tuple[list[Chunk], list[int]]:
        """Take one round: chunks of output, and which of ``extra_fds`` are readable."""
        if self._ending.lost is not None:
            return [], []
        try:
            if self.running.exit is None:
                self._input.give(self.running)
            # After the end nothing wakes a poll of ``extra_fds`` alone: take what is left.
            found = self.running.step(timeout, extra_fds if self.running.exit is None else ())
            if self._place is not None:
                found = [*self._missed(self._place), *found[0]], found[1]
            if self._digests is not None:
                self._digests.take(found[0])
            if self._listed is None:
                for name, data in found[0]:
                    self.cursors[name] += len(data)
            return found
        except (BackendLost, GuestError) as error:
            self._ending.lose(error)
            return [], []

    def feed(self, data: bytes, *, eof: bool = True, done: "Future[None] | None" = None) -> None:
        """Take input, before it is driven; it is given as the command reads, and ``done`` then."""
        self._driver = threading.get_ident()
        self._note_read(data)
        self._input.add(data, eof, done or Future())
        try:
            self._input.give(self.running)
        except (BackendLost, GuestError) as error:
            self._ending.lose(error)

    def follow(self, emit: Emit | None = None, cancel: int = -1) -> Result:
        """Drive it to its end, all of its output in the result. What ``emit`` raises ends it and
        comes out here; ``cancel`` readable kills it."""
        self._kept = KeptOutput(self._listed)
        try:
            self._take_all(emit, cancel)
            result = self.finish()
        except BaseException as error:
            self._conclude(self._let_go(ours(error)))
            raise
        finally:
            self.close()
        self._conclude(result)
        kept, self._kept = self._kept, None
        if result.stdout or result.stderr:  # all of it came at once, and there is room for it
            return result
        out, err, whole = kept.read()  # the request's own limit bounds it
        cut = result.truncated or not whole
        return msgspec.structs.replace(result, stdout=out, stderr=err, truncated=cut)

    def drive(self, *, keep: bool) -> None:
        """Take its output until its end, which is never raised. ``keep``: so that ``answer`` has
        it, too."""
        self._kept = KeptOutput(self._listed) if keep else None
        try:
            self._take_all()
            result = self._finished()
            self.usage = result.usage
        except Exception as error:  # whoever waits for its end shall not wait for ever
            result = self._let_go(self.listed.as_told(error, self.running.pid))
        finally:
            with contextlib.suppress(AgentdError):
                self.close()
        self._conclude(result)

    def answer(self) -> "ResultView":
        """Return how one ended that was driven to ``keep``, with the begin of each stream. Waits
        until there is room for that. Raises what ``context.make_room`` does."""
        if self.result is None or self._kept is None:
            raise TypeError("nothing of it was kept")
        kept, self._kept = self._kept, None
        return with_output(self.result, *kept.read(MAX_ANSWER))

    def abandon(self, error: Exception) -> None:
        """Kill it where nobody can ``drive`` it, and tell those who follow it."""
        if self.result is not None:
            return
        result = self._let_go(ours(error))
        with contextlib.suppress(AgentdError):
            self.close()
        self._conclude(result)

    def finish(self) -> Result:
        """Wait for the end; output that nobody took is dropped, unless it is captured."""
        while (end := self.exit) is None:
            self.step()
        result, refused = self._ending.result(end, self.running, self.request_id)
        self._known = result
        admission, self._admission = self._admission, None
        if admission is None or self._digests is None:
            return result
        if refused:
            admission.unconnected(refused)
        self._digests.take((("stdout", result.stdout), ("stderr", result.stderr)))
        outputs = self._digests.found()
        read = outputs.pop("stdin", "")
        receipt = admission.end(result, outputs, read)
        return msgspec.structs.replace(result, receipt=receipt)

    def detach(self) -> NoReturn:
        """Refuse: of a command that is not listed nobody else could take hold again."""
        raise Refused(
            "a daemon is needed to let a command go on",
            cause="this sandbox lives and ends with this process",
            remediation="give url=, with agentd serve running",
        )

    def close(self) -> None:
        self._input.close(self.id)
        self.running.close()
        self._end(None)

    # --- from any thread, where it is listed ---

    def write(self, data: bytes, *, eof: bool = False) -> None:
        """Wait until it reads that. Raises Conflict once it has ended."""
        if self._is_driven_here():
            if data:
                self._write(data)
            if eof:
                self.running.close_stdin()
        elif data or eof:
            done: Future[None] = Future()
            done.add_done_callback(lambda given: self._note_given(given, data))
            self.listed.errands.do(lambda: self._input.add(data, eof, done))
            done.result()

    def close_stdin(self) -> None:
        self.write(b"", eof=True)

    def signal(self, number: int, target: str = "group") -> None:
        """Send it; 0 only looks. Raises InvalidInput, Conflict once it has ended."""
        check_signal(number, target)
        self._do(lambda: self.running.signal(number, target))

    def resize(self, rows: int, cols: int) -> None:
        """Change its terminal's size. Raises InvalidInput, Conflict once it has ended."""
        check_window(rows, cols)
        self._do(lambda: self.running.resize(rows, cols))

    def kill(self) -> None:
        """Kill it. Raises Conflict once it has ended."""
        self._do(self.running.kill)

    def cancel(self, why: Cause = _DISCONNECTED) -> None:
        """Kill it, for nobody waits for it any more: that is its cause. Never blocks."""

        def cancel() -> None:
            self._ending.why = self._ending.why or why  # not why its client is cut off then
            self.running.kill()

        if self._listed is None:
            cancel()
        else:
            self._listed.errands.leave(cancel)

    def _do(self, work: Callable[[], object]) -> None:
        if self._is_driven_here():
            work()
        else:
            self.listed.errands.do(work)

    def _is_driven_here(self) -> bool:
        return self._listed is None or self._driver == threading.get_ident()

    def _note_given(self, given: "Future[None]", data: bytes) -> None:
        if given.exception() is None:
            self._note_read(data)

    def _note_read(self, data: bytes) -> None:
        if self._digests is not None and self._notes_read:
            self._digests.take([("stdin", data)])

    def _write(self, data: bytes) -> None:
        try:
            self.running.write(data)
            self._note_read(data)
        except BackendLost as error:
            self._ending.lose(error)

    def _take_all(self, emit: Emit | None = None, cancel: int = -1) -> None:
        self._driver = threading.get_ident()
        listed, fds = self._listed, [] if cancel < 0 else [cancel]
        if listed is not None:
            fds.append(listed.errands.wake)
        for found, ready in drive(self, fds.copy):
            for stream, data in found:
                self._take(stream, data, emit)
            if not ready:
                continue
            if cancel in ready:
                fds.remove(cancel)  # it stays readable: looked at again, it would keep us awake
                self.running.kill()
            if listed is not None:
                listed.errands.run()

    def _take(self, stream: str, data: bytes, emit: Emit | None) -> None:
        if self._listed is not None:
            self._listed.take(stream, data)
        if self._kept is not None:
            self._kept.take(stream, data)
        if emit is not None and not isinstance(data, LostOutput):
            emit(stream, bytes(data))

    def _missed(self, asked: tuple[int, int]) -> list[Chunk]:
        """Return what the agent had dropped while nobody followed, once it has told."""
        begun: tuple[int, int] | None = getattr(self.running, "cursor", None)
        if begun is None:
            return []
        self._place = None
        places = zip(("stdout", "stderr"), asked, begun, strict=True)
        return [(name, LostOutput.of(at - wanted)) for name, wanted, at in places if at > wanted]

    def _finished(self) -> Result:
        try:
            return self.finish()
        except AgentdError as error:
            if self._known is None:
                raise
            # How it ended is known, and not written down: whoever waits is told that instead.
            self.unrecorded = error
            return self._known

    def _let_go(self, error: AgentdError) -> Result:
        """Kill what nobody follows any more: what is told to have ended does not go on; the
        record of its end says why. One that is lost with a sandbox that somebody ends ends so."""
        is_lost = self._known is not None or self._ending.lost is not None
        if isinstance(error, BackendLost | GuestError) and self._ending.reason and not is_lost:
            self._ending.lose(error)
            with contextlib.suppress(AgentdError):
                self.running.close()
            with contextlib.suppress(AgentdError):
                return self._finished()
        with contextlib.suppress(AgentdError):
            gone = isinstance(error, BackendLost | CommandLost)
            if self.pid is not None and self._listed and not gone:
                self._handle.guest.signal(self.pid, signal.SIGKILL)
        with contextlib.suppress(AgentdError):
            self.running.close()
            self._end(error)
        return lost(self.request_id, self._handle, error)

    def _conclude(self, result: Result) -> None:
        self._driver = 0  # a later thread may have its number
        if self._listed is not None:
            self.result = of_result(result, self._listed.id)
            # It is listed from here on, for as long as its sandbox: not with all that it was asked
            # with, nor what an agent gave of its output at once.
            self._pid, self.running, self._known = self.pid, HasEnded(self.exit), None
            self._listed.conclude(self.result)

    def _end(self, error: BaseException | None) -> None:
        admission, self._admission = self._admission, None
        try:
            if admission is not None:
                admission.fail(error)
        finally:
            if self._open:
                self._open = False
                self._handle.end_command()
