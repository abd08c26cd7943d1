"""Decides by a compiled bundle, in worker processes. It fails closed: no answer is a refusal."""

import os
from collections.abc import Iterator
from typing import Any

import msgspec

from agentd.model.decision import Asked, Decision
from agentd.model.errors import AgentdError
from agentd.policy import answer
from agentd.policy.build import Built
from agentd.policy.frames import Load, Query
from agentd.policy.process import NoAnswer, WorkerPool, WorkerProcess
from agentd.policy.reads import Reads

MAX_ASKED = 1 << 20  # bytes of JSON, of what the policy reads
SECONDS = 0.25  # of one decision; it takes well below a millisecond
MAX_REMEMBERED = 1024  # answers
MAX_REMEMBERED_SIZE = 4 << 10  # bytes of a question
WAIT = 5.0  # seconds, for a worker that is free
_ABSENT = object()
_EFFECTS = ("deny", "approve", "grant")


class Fired(msgspec.Struct, frozen=True):
    """A rule of the policy that spoke. ``effect`` is "deny", "approve" or "grant"; ``rule`` is
    "MODULE.RULE" and "" where its text does not begin with one."""

    effect: str
    rule: str
    message: str


class Explanation(msgspec.Struct, frozen=True):
    """``fired`` is empty for a bundle without the sets deny, approve and grant."""

    decision: Decision
    fired: tuple[Fired, ...] = ()


class _InForce:
    """A bundle, and what it answered. The same question has the same answer: a bundle can call
    nothing that knows more than its arguments, and is asked what it can read alone."""

    def __init__(self, built: Built) -> None:
        self.built = built
        self.answers: dict[bytes, Decision] = {}

    def remember(self, document: bytes, decision: Decision) -> None:
        if len(document) > MAX_REMEMBERED_SIZE:
            return
        if len(self.answers) >= MAX_REMEMBERED:
            self.answers.clear()
        self.answers[document] = decision


class PolicyEngine:
    """Thread-safe. ``workers`` is how many decisions are made at the same time, at most;
    ``remember`` says whether a question that was answered is answered from memory."""

    def __init__(
        self,
        built: Built,
        *,
        workers: int | None = None,
        seconds: float = SECONDS,
        remember: bool = True,
    ) -> None:
        self._now = _InForce(built)
        self._seconds = seconds
        self._remember = remember
        self._pool = WorkerPool(workers or min(2, os.cpu_count() or 1))

    @property
    def digest(self) -> str:
        return self._now.built.digest

    def load(self, built: Built) -> None:
        """Have a worker load it. Raises AgentdError where it cannot be."""
        with self._pool.borrow(WAIT) as process:
            self._load(process, built)

    def use(self, built: Built) -> None:
        """Use what can be loaded from now on."""
        self._now = _InForce(built)

    def decide(self, asked: Asked) -> Decision:
        """Never raises: where there is no decision, ``undecided`` says why."""
        now = self._now
        try:
            document = _document(asked, now.built)
            known = now.answers.get(document)
            if known is not None:
                return known
            text = self._ask(now.built, b"d", document)
            decision = answer.decision(text, now.built.digest)
        except Exception as error:
            # Whatever it is: a caller that saw it raised might go on.
            return _undecided(error, now.built)
        if self._remember:
            now.remember(document, decision)
        return decision

    def explain(self, asked: Asked) -> Explanation:
        """Return the decision, and which rules it comes of. Never raises."""
        decision = self.decide(asked)
        now = self._now
        if decision.undecided:
            return Explanation(decision)
        try:
            return Explanation(decision, tuple(self._fire(asked, now.built)))
        except Exception as error:
            return Explanation(_undecided(error, now.built))

    def close(self) -> None:
        """Waits for the decisions that are being made; there are none after it."""
        self._now.answers = {}
        self._pool.close()

    def _fire(self, asked: Asked, built: Built) -> Iterator[Fired]:
        document = msgspec.Raw(_document(asked, built))
        for effect in _EFFECTS:
            query = msgspec.json.encode(Query(f"agentd/{effect}", document))
            try:
                found = answer.texts(self._ask(built, b"q", query))
            except NoAnswer:
                continue
            yield from (_fired(effect, text) for text in found)

    def _ask(self, built: Built, operation: bytes, body: bytes) -> str:
        with self._pool.borrow(WAIT) as process:
            if process.loaded != built.path:
                self._load(process, built)
            return process.ask(operation, body, self._seconds).decode()

    def _load(self, process: WorkerProcess, built: Built) -> None:
        load = Load(built.path, self._seconds)
        process.work(b"l", msgspec.json.encode(load), "loading the compiled policy")
        process.loaded = built.path


def pruned(document: Any, read: Reads) -> Any:
    """Return the document without what is not read."""
    if read is None or type(document) is not dict:
        return document
    return {
        name: value if of is None else pruned(value, of)
        for name, of in read.items()
        if (value := document.get(name, _ABSENT)) is not _ABSENT
    }


def _document(asked: Asked, built: Built) -> bytes:
    document = msgspec.json.encode(pruned(msgspec.structs.asdict(asked), built.reads))
    if len(document) > MAX_ASKED:
        raise ValueError(
            f"the policy reads {len(document) >> 10} KiB of the request, and {MAX_ASKED >> 10} KiB "
            "are the most that it may"
        )
    return document


def _undecided(error: Exception, built: Built) -> Decision:
    if isinstance(error, AgentdError):
        why = f"{error.message}: {error.cause}" if error.cause else error.message
    else:
        why = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    return Decision(allow=False, bundle=built.digest, undecided=why[:500] or "no reason given")


def _fired(effect: str, text: str) -> Fired:
    rule, colon, message = text.partition(": ")
    return Fired(effect, rule, message) if colon and " " not in rule else Fired(effect, "", text)
