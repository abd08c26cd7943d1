"""Idempotency keys: a request that a client sends again is not done again.

    first time          it runs; its answer is recorded, on disk before it is given
    again, running      waits for the same answer
    again, done         gets the recorded answer
    again, interrupted  the daemon died while it ran: says so, for nobody knows how far it came
    other request       refused, whatever became of the first

A repeat is authorised like the request itself before it gets an answer. A key is its principal's
own and is forgotten an hour after its request ended, or sooner: where too many are kept, the
principal's oldest ended ones are forgotten, and of too many bytes the oldest answers. A key whose
request runs is never forgotten. Time is the wall clock's: it must outlive the daemon. A leap of it
forgets no key of a daemon that runs (``past``).

Answers are sealed in the store: see ``seal``.

That it runs is written down first, for whoever finds it interrupted. Not so where what it does does
not last (a sandbox is made): that is recorded in one with the answer, or is nobody's and ended by
the next daemon, and then the request may well be done again.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec

from agentd.daemon.keyed import NEW, Keyed, KeyedBounds
from agentd.daemon.seal import AnswerSeal
from agentd.daemon.store.errors import StoreError
from agentd.daemon.store.records import IdempotencyRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.daemon.store.view import Transaction
from agentd.model import context
from agentd.model.answer import Answer, Authorise, Carry, Work
from agentd.model.errors import AgentdError, Forbidden, InvalidInput, Refused
from agentd.model.result import CauseCode

MAX_ANSWER = 1 << 20  # bytes; of a larger one only that it was given is kept
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_NEW_KEY = "look at what it did, then send it with a new Idempotency-Key"


class IdempotencyMismatch(InvalidInput):
    code = "idempotency_mismatch"


class IdempotencyInterrupted(AgentdError):
    """The request was begun, and nobody knows whether it was done."""

    code = "idempotency_interrupted"


class AnswerDropped(AgentdError):
    """The request was done, and its answer is not kept."""

    code = "idempotency_answer_dropped"


class IdempotencyFull(Refused):
    code = "idempotency_full"


class _Run:
    """The request of one key. ``decided``: whether it runs, or was answered from the record, is
    known."""

    def __init__(self, digest: str, lasting: bool, authorise: Authorise | None) -> None:
        self.digest = digest
        self.lasting = lasting
        self.authorise = authorise
        self.claimed = False  # that it runs is in the store
        self.refused = False  # to the one who asked, and not to others who may
        self.task: asyncio.Task[Answer] | None = None
        self.decided = False
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Event | None = None  # of that, if somebody waits for it

    def ended(self, task: "asyncio.Task[Answer]") -> None:
        """Retrieve an error that nobody may wait for: asyncio would complain that nobody saw it.
        Its frames have this run, and the request."""
        self.task = None
        if not task.cancelled():
            task.exception()

    async def wait_decided(self) -> None:
        # First this and then a look, where ``decide`` does it the other way round: no call is lost.
        self._told = self._told or asyncio.Event()
        if not self.decided:
            await self._told.wait()

    def decide(self) -> None:
        """Decide it, from any thread."""
        self.decided = True
        if self._told is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._told.set)


class Idempotency:
    """Runs each once, for one event loop. Marks what a daemon before left behind as interrupted."""

    def __init__(
        self,
        store: SqliteStore,
        seal: AnswerSeal,
        bounds: KeyedBounds | None = None,
        *,
        clock: Callable[[], float] = time.time,
        past: Callable[[], float] | None = None,
    ) -> None:
        self._store = store
        self._seal = seal
        self._kept = Keyed(store, bounds or KeyedBounds(), clock, past or clock)
        self._running: dict[tuple[str, str], _Run] = {}

    async def run(
        self,
        principal: str,
        key: str,
        digest: str,
        work: Work,
        carry: Carry,
        *,
        lasting: bool = True,
        authorise: Authorise | None = None,
    ) -> Answer:
        """Return the answer of ``work``, or that of the request that had the key first. Where what
        it does is not ``lasting``, neither is its record: a loss of power undoes both. It is then
        recorded with what ``work`` gave to ``context.recorded()``, or both are undone.

        ``authorise`` is called, in a thread, for a repeat alone: it raises where the repeat may not
        have the answer. It gets the names of the acts that somebody approved, None for all.

        ``carry`` does in a thread what it is given: ``work`` between two writes to the store. A
        caller that is cancelled does not stop that: the next one attaches to it. ``work`` had best
        make answers of errors itself. What it raises is not recorded: InvalidInput and Refused say
        that nothing was done and free the key, any other leaves it interrupted.

        Raises IdempotencyMismatch, IdempotencyInterrupted, AnswerDropped, IdempotencyFull,
        InvalidInput for a malformed key, StoreError.
        """
        if not _KEY.fullmatch(key):
            raise InvalidInput(
                "the Idempotency-Key is malformed",
                remediation="send 1 to 255 printable ASCII characters without spaces",
            )
        while (running := self._running.get((principal, key))) is not None:
            if running.digest == digest and running.task is not None:
                answer = await _attached(running, running.task, authorise, carry)
                if answer is not None:
                    return answer
            elif running.decided:
                raise _mismatch(key)
            else:
                await running.wait_decided()
        running = self._running[principal, key] = _Run(digest, lasting, authorise)
        running.task = task = _begin(self._answer(principal, key, running, work, carry))
        task.add_done_callback(running.ended)
        return await asyncio.shield(task)

    def sweep(self) -> int:
        """Forget keys that have expired: how many. Called now and then, from any thread."""
        return self._kept.sweep()

    async def _answer(
        self, principal: str, key: str, running: _Run, work: Work, carry: Carry
    ) -> Answer:
        try:
            return await carry(lambda: self._perform(principal, key, running, work))
        finally:
            # Removed first: those who wait for the decision find nothing that runs, and ask again.
            del self._running[principal, key]
            running.decide()

    # -- in a thread -------------------------------------------------------------------------

    def _perform(self, principal: str, key: str, running: _Run, work: Work) -> Answer:
        record = self._found_or_new(principal, key, running)
        if record is None:
            most = self._kept.bounds
            raise IdempotencyFull(
                "too many requests with an Idempotency-Key run at once",
                cause=f"{most.keys} a principal and {most.total_keys} in all are the most",
                remediation="send it again when one of them has ended",
            )
        if record.state != NEW:
            self._authorise(running, frozenset(record.approved.split()))
            return self._recorded(record, running.digest)
        running.decide()
        try:
            answer = work()
        except (InvalidInput, Refused) as error:
            # Others may what this one may not, and wait though its client has gone.
            running.refused = isinstance(error, Forbidden) or error.code == CauseCode.CANCELLED
            if running.claimed:
                self._kept.write(lambda t: self._kept.release(t, record))
            raise
        except Exception:
            with contextlib.suppress(StoreError):
                self._record(running, record, "interrupted")
            raise
        self._record_done(running, record, answer)
        return answer

    def _authorise(self, running: _Run, approved: frozenset[str]) -> None:
        try:
            if running.authorise is not None:
                running.authorise(approved)
        except Exception:
            running.refused = True
            raise

    def _found_or_new(self, principal: str, key: str, running: _Run) -> IdempotencyRecord | None:
        """Find its run or begin one; None if full."""
        if not running.lasting:  # room is made for it with its answer
            found = self._store.get(IdempotencyRecord, principal, key)
            if found is None:
                return self._kept.new(principal, key, running.digest)
            if not self._kept.has_expired(found):
                return found
        running.claimed = True
        # Not synced: a loss of power takes the sandboxes along that it was about.
        found = self._kept.write(
            lambda t: self._kept.claim(t, principal, key, running.digest), synced=False
        )
        return found if isinstance(found, IdempotencyRecord) else None

    def _record_done(self, running: _Run, record: IdempotencyRecord, answer: Answer) -> None:
        """Should the disk refuse it, what can be taken back is, and the error answered. Else the
        key stays "started": a repeat is told "interrupted"."""
        along = context.recorded()
        try:
            self._record(running, record, "done", answer, along.works if along else ())
        except StoreError:
            if along is None or not along.take_back():
                return
            with contextlib.suppress(StoreError):
                if running.claimed:
                    self._kept.write(lambda t: self._kept.release(t, record), synced=False)
            raise

    def _record(
        self,
        running: _Run,
        record: IdempotencyRecord,
        state: str,
        answer: Answer | None = None,
        along: Iterable[Callable[[Transaction], object]] = (),
    ) -> None:
        body = b""
        if answer is not None and len(answer.body) <= MAX_ANSWER:
            body = self._seal.close(answer.body, _about(record))
        recording = context.recorded()
        approved = " ".join(sorted(recording.approved)) if recording is not None else ""
        record = msgspec.structs.replace(record, approved=approved)

        def write(transaction: Transaction) -> None:
            for work in along:
                work(transaction)
            if not running.claimed:
                self._kept.make_room(transaction, record.principal)
                self._kept.count(record.principal, 1, 0)
            self._kept.end(transaction, record, state, answer, body)

        self._kept.write(write, synced=running.lasting)

    def _recorded(self, record: IdempotencyRecord, digest: str) -> Answer:
        if record.digest != digest:
            raise _mismatch(record.key)
        if record.state == "dropped":
            raise AnswerDropped(
                f"the request with the Idempotency-Key {record.key!r} was done, with status"
                f" {record.status}, and its answer is not kept",
                cause="it was too large, or many came after it",
                remediation="read its output from the journal; " + _NEW_KEY + " to do it again",
            )
        if record.state == "done":
            body = self._seal.open(record.body, _about(record))
            if body is not None:
                return Answer(record.status, body, record.headers, replayed=True)
            why = "the key that sealed its answer is gone: the machine was started again"
        else:
            why = "the daemon ended, or failed, while it ran"
        raise IdempotencyInterrupted(
            f"the request with the Idempotency-Key {record.key!r} was interrupted",
            cause=why,
            remediation=_NEW_KEY,
        )


def _about(record: IdempotencyRecord) -> bytes:
    """Return what a sealed answer belongs to."""
    return "\0".join((record.principal, record.key, record.digest)).encode()


async def _attached(
    running: _Run, task: asyncio.Task[Answer], authorise: Authorise | None, carry: Carry
) -> Answer | None:
    """Wait for the answer of what runs already; None where it was refused to the one who asked, and
    others may."""
    if authorise is not None:

        def authorised() -> Answer:
            authorise(None)  # it goes on only once it is approved itself
            return Answer(204)

        await carry(authorised)
    try:
        answer = await asyncio.shield(task)
    except AgentdError:
        if running.refused:
            return None
        raise
    return msgspec.structs.replace(answer, replayed=True)


def _mismatch(key: str) -> IdempotencyMismatch:
    return IdempotencyMismatch(
        f"the Idempotency-Key {key!r} was used for another request",
        remediation="send each request with a key of its own",
    )


def _begin(work: "Coroutine[Any, Any, Answer]") -> "asyncio.Task[Answer]":
    """A task; where Python can, without another turn of the loop before it begins."""
    loop = asyncio.get_running_loop()
    eager = getattr(asyncio, "eager_task_factory", None)  # Python 3.12
    return loop.create_task(work) if eager is None else eager(loop, work)
