"""Idempotency keys: a request that a client sends again is not done again.

    first time          it runs; its answer is recorded, on disk before it is given
    again, running      waits for the same answer
    again, done         gets the recorded answer
    again, interrupted  the daemon died while it ran: says so, for nobody knows how far it came
    other request       refused, whatever became of the first

A key is its principal's own and is forgotten a day after its request ended. Time is the wall
clock's: it must outlive the daemon.

That it runs is written down first, for whoever finds it interrupted. Not so where what it does does
not last (a sandbox is made): that is recorded in one with the answer, or is nobody's and ended by
the next daemon, and then the request may well be done again.
"""

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec

from agentd.daemon import context
from agentd.daemon.store.errors import StoreError
from agentd.daemon.store.port import Store, Transaction
from agentd.daemon.store.records import IdempotencyRecord
from agentd.model.api import Answer, Carry, Work
from agentd.model.errors import AgentdError, InvalidInput, Refused

TTL = 86400.0
MAX_ANSWER = 1 << 20  # bytes; of a larger one only that it was given is kept
MAX_KEYS = 10_000  # a principal
MAX_BYTES = 64 << 20  # of answers, a principal
MAX_TOTAL_KEYS = 200_000
_SWEEP = 1000  # rows in one transaction
_MAX_PRINCIPALS = 10_000  # whose use is remembered; of others it is counted again
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_NEW = "new"  # claimed just now; never stored
_NEW_KEY = "look at what it did, then send it with a new Idempotency-Key"


class IdempotencyMismatch(InvalidInput):
    code = "idempotency_mismatch"


class IdempotencyInterrupted(AgentdError):
    """It was begun, and whether it was done is not known."""

    code = "idempotency_interrupted"


class AnswerDropped(AgentdError):
    """It was done, and its answer was too large to keep."""

    code = "idempotency_answer_dropped"


class IdempotencyFull(Refused):
    code = "idempotency_full"


class _Run:
    """Of one key. ``decided``: whether it runs, or was answered from the record, is known."""

    def __init__(self, digest: str, lasting: bool) -> None:
        self.digest = digest
        self.lasting = lasting
        self.claimed = False  # that it runs is in the store
        self.task: asyncio.Task[Answer] | None = None
        self.decided = False
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Event | None = None  # of that, if somebody waits for it

    async def wait_decided(self) -> None:
        # First this and then a look, where ``decide`` does it the other way round: no call is lost.
        self._told = self._told or asyncio.Event()
        if not self.decided:
            await self._told.wait()

    def decide(self) -> None:
        """From any thread."""
        self.decided = True
        if self._told is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._told.set)


class Idempotency:
    """For one event loop. Marks what a daemon before left running as interrupted."""

    def __init__(
        self, store: Store, *, ttl: float = TTL, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._ttl = ttl
        self._clock = clock
        self._running: dict[tuple[str, str], _Run] = {}
        self._use: dict[str, tuple[int, int]] = {}  # principal -> keys, bytes of answers
        while store.write(_interrupt):
            pass
        self._total = store.measure(IdempotencyRecord, "size").rows

    async def run(
        self,
        principal: str,
        key: str,
        digest: str,
        work: Work,
        carry: Carry,
        *,
        lasting: bool = True,
    ) -> Answer:
        """The answer of ``work``, or that of the request that had the key first. Where what it does
        is not ``lasting``, neither is its record: a loss of power undoes both. It is then recorded
        with what ``work`` gave to ``context.recorded()``, or both are undone.

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
                answer = await asyncio.shield(running.task)
                return msgspec.structs.replace(answer, replayed=True)
            if running.decided:
                raise _mismatch(key)
            await running.wait_decided()
        running = self._running[principal, key] = _Run(digest, lasting)
        running.task = _begin(self._answer(principal, key, running, work, carry))
        running.task.add_done_callback(_retrieve)
        return await asyncio.shield(running.task)

    async def drain(self) -> None:
        """Until what runs has ended and is recorded."""
        while tasks := [run.task for run in self._running.values() if run.task is not None]:
            await asyncio.wait(tasks)

    async def sweep(self) -> int:
        """Forget keys that have expired: how many. To be called now and then."""
        total = 0
        while True:
            gone = await self._store.awrite(self._delete_expired)
            total += gone
            if gone < _SWEEP:
                return total

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
            raise IdempotencyFull(
                "too many Idempotency-Keys are remembered",
                cause=f"{MAX_KEYS} a principal and {MAX_TOTAL_KEYS} in all are the most",
                remediation="send it without one, or wait until the oldest expire",
            )
        if record.state != _NEW:
            return _recorded(record, running.digest)
        running.decide()
        try:
            answer = work()
        except (InvalidInput, Refused):
            if running.claimed:
                self._store.write(lambda t: self._release(t, record))
            raise
        except Exception:
            with contextlib.suppress(StoreError):
                self._record(running, record, "interrupted")
            raise
        self._record_done(running, record, answer)
        return answer

    def _found_or_new(self, principal: str, key: str, running: _Run) -> IdempotencyRecord | None:
        """None if full."""
        if not running.lasting and self._has_room(principal):
            found = self._store.get(IdempotencyRecord, principal, key)
            if found is None:
                return self._new(principal, key, running.digest)
            if found.expires > self._clock():
                return found
        running.claimed = True
        # Not synced: a loss of power takes the sandboxes along that it was about.
        return self._store.write(
            lambda t: self._claim(t, principal, key, running.digest), synced=False
        )

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
                    self._store.write(lambda t: self._release(t, record), synced=False)
            raise

    def _record(
        self,
        running: _Run,
        record: IdempotencyRecord,
        state: str,
        answer: Answer | None = None,
        along: Iterable[Callable[[Transaction], object]] = (),
    ) -> None:
        def write(transaction: Transaction) -> None:
            for work in along:
                work(transaction)
            self._end(transaction, record, state, answer)
            if not running.claimed:
                self._count(record.principal, 1, 0)

        self._store.write(write, synced=running.lasting)

    def _has_room(self, principal: str) -> bool:
        """As far as is known: those who ask at the same time may come to a few more."""
        keys = self._use.get(principal, (MAX_KEYS, 0))[0]
        return keys < MAX_KEYS and self._total < MAX_TOTAL_KEYS

    def _new(self, principal: str, key: str, digest: str) -> IdempotencyRecord:
        now = self._clock()
        return IdempotencyRecord(
            principal=principal,
            key=key,
            digest=digest,
            state=_NEW,
            created=now,
            expires=now + self._ttl,
        )

    # -- in the store's turn: what follows is never run twice at once ------------------------

    def _claim(
        self, transaction: Transaction, principal: str, key: str, digest: str
    ) -> IdempotencyRecord | None:
        """The record that has the key, or a new one that has it from now on; None if full."""
        found = transaction.get(IdempotencyRecord, principal, key)
        if found is not None and found.expires > self._clock():
            return found
        if found is not None:
            self._release(transaction, found)
        if self._is_full(transaction, principal):
            self._delete_expired(transaction)
            if self._is_full(transaction, principal):
                return None
        record = self._new(principal, key, digest)
        transaction.put(msgspec.structs.replace(record, state="started"))
        self._count(principal, 1, 0)
        return record

    def _end(
        self,
        transaction: Transaction,
        record: IdempotencyRecord,
        state: str,
        answer: Answer | None,
    ) -> None:
        ended = msgspec.structs.replace(record, state=state, expires=self._clock() + self._ttl)
        if answer is not None:
            size = len(answer.body)
            _, held = self._used(transaction, record.principal)
            kept = size <= MAX_ANSWER and held + size <= MAX_BYTES
            ended = msgspec.structs.replace(
                ended,
                state=state if kept else "dropped",
                status=answer.status,
                headers=answer.headers if kept else {},
                body=answer.body if kept else b"",
                size=size if kept else 0,
            )
        transaction.put(ended)
        self._count(record.principal, 0, ended.size)

    def _release(self, transaction: Transaction, record: IdempotencyRecord) -> None:
        if transaction.delete(IdempotencyRecord, record.principal, record.key):
            self._count(record.principal, -1, -record.size)

    def _delete_expired(self, transaction: Transaction) -> int:
        gone = transaction.delete_before(IdempotencyRecord, "expires", self._clock(), _SWEEP)
        if gone:
            self._use.clear()
            self._total -= gone
        return gone

    def _is_full(self, transaction: Transaction, principal: str) -> bool:
        keys, _ = self._used(transaction, principal)
        return keys >= MAX_KEYS or self._total >= MAX_TOTAL_KEYS

    def _used(self, transaction: Transaction, principal: str) -> tuple[int, int]:
        if principal not in self._use:
            if len(self._use) >= _MAX_PRINCIPALS:
                self._use.clear()
            self._use[principal] = transaction.measure(
                IdempotencyRecord, "size", principal=principal
            )
        return self._use[principal]

    def _count(self, principal: str, keys: int, size: int) -> None:
        self._total += keys
        if principal in self._use:
            had = self._use[principal]
            self._use[principal] = (had[0] + keys, had[1] + size)


def request_digest(method: str, path: str, body: bytes) -> str:
    """Of what must be the same when a key is used again."""
    total = hashlib.sha256()
    for part in (method.encode(), path.encode(), body):
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
    return total.hexdigest()


def _interrupt(transaction: Transaction) -> int:
    """A page of what nobody runs any more."""
    found = transaction.find(IdempotencyRecord, state="started")
    for record in found:
        transaction.put(msgspec.structs.replace(record, state="interrupted"))
    return len(found)


def _recorded(record: IdempotencyRecord, digest: str) -> Answer:
    if record.digest != digest:
        raise _mismatch(record.key)
    if record.state == "done":
        return Answer(record.status, record.body, record.headers, replayed=True)
    if record.state == "dropped":
        raise AnswerDropped(
            f"the request with the Idempotency-Key {record.key!r} was done, with status"
            f" {record.status}, and its answer was too large to keep",
            remediation="read its output from the journal; " + _NEW_KEY + " to do it again",
        )
    raise IdempotencyInterrupted(
        f"the request with the Idempotency-Key {record.key!r} was interrupted",
        cause="the daemon ended, or failed, while it ran",
        remediation=_NEW_KEY,
    )


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


def _retrieve(task: "asyncio.Task[Answer]") -> None:
    """Nobody may be waiting any more; asyncio would complain of an error that nobody saw."""
    if not task.cancelled():
        task.exception()
