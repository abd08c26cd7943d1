"""Decides on what sandboxes would connect to by rules that ask: each question is an act, judged and
approved as any other, in a thread of its own."""

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from agentd.daemon.admission import acts
from agentd.daemon.admission.gate import Gate
from agentd.daemon.admission.parked import ApprovalDenied
from agentd.daemon.sandboxes.live import Live
from agentd.egress.asked import MAX_OPEN, AskedPlace
from agentd.egress.compile import compile_table
from agentd.egress.table import EgressTable
from agentd.model import context
from agentd.model.errors import AgentdError, PolicyDenied
from agentd.sandbox import guard

MOST = 64  # that are decided on at a time
#: Seconds that a refusal holds: one that somebody or a policy meant, and any other.
DENIED_SECONDS, REFUSED_SECONDS = 600.0, 10.0
_EARLY = MAX_OPEN * MOST  # that are kept until we are started


class AnswersWalls(Protocol):
    def tell(self, op: str, **fields: object) -> None: ...


class _Question(NamedTuple):
    wall: str
    asked: AskedPlace
    gone: context.Gone  # set: nobody waits for the decision


class AskedConnections:
    """Thread-safe. Takes what it is told from the first moment on, and decides once started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._early: list[_Question] | None = []
        self._open: dict[int, _Question] = {}
        self._closing = False
        self._count = 0
        self._link: AnswersWalls
        self._gate: Gate
        self._all: Callable[[], Iterable[Live]]

    def tell(self, message: dict[str, object]) -> None:
        """A connection waits, as the supervisor says; ``id`` is its wall's. Never blocks for long.
        Raises KeyError, ValueError."""
        asked = AskedPlace(str(message["host"]), int(str(message["port"])), str(message["rule"]))
        question = _Question(str(message["id"]), asked, context.Gone())
        with self._lock:
            if self._early is not None:
                self._early = [*self._early, question][-_EARLY:]
                return
        self._begin(question)

    def start(self, link: AnswersWalls, gate: Gate, every: Callable[[], Iterable[Live]]) -> None:
        """``every`` tells the sandboxes that there are."""
        self._link, self._gate, self._all = link, gate, every
        with self._lock:
            early, self._early = self._early or [], None
        for question in early:
            self._begin(question)

    def rules_changed(self, live: Live) -> None:
        """Drop questions that its rules do not ask any more: the relay has judged them anew."""
        with self._lock:
            of_it = [one for one in self._open.values() if one.wall == live.wall.id]
        if of_it:
            spec = live.handle.spec
            table = EgressTable(compile_table(spec.egress, spec.egress_bounds, spec.secrets))
            for one in of_it:
                if not table.asks(one.asked.host, one.asked.port):
                    one.gone.set()

    def close(self) -> None:
        """Nothing is decided any more; the supervisor refuses what is open as we go. Idempotent."""
        with self._lock:
            self._closing = True
            left = list(self._open.values())
        for question in left:
            question.gone.set()

    def _begin(self, question: _Question) -> None:
        with self._lock:
            full = len(self._open) >= MOST
            if not full and not self._closing:
                self._count += 1
                number = self._count
                self._open[number] = question
        if full:
            self._answer(question, f"{MOST} connections wait to be decided on", REFUSED_SECONDS)
        elif not self._closing:
            try:
                threading.Thread(
                    target=self._run, args=(number, question), name="asked", daemon=True
                ).start()
            except RuntimeError as error:  # no thread is left
                self._forget(number)
                self._answer(question, f"it cannot be decided on: {error}", REFUSED_SECONDS)

    def _run(self, number: int, question: _Question) -> None:
        try:
            reason, seconds = self._decided(question)
        except Exception as error:
            guard.tell(error)
            reason, seconds = "the daemon failed to decide", REFUSED_SECONDS
        finally:
            self._forget(number)
        self._answer(question, reason, seconds)

    def _decided(self, question: _Question) -> tuple[str, float | None]:
        """Why it is refused, "" where it is not, and for how long that holds."""
        live = next((one for one in self._all() if one.wall.id == question.wall), None)
        if live is None or live.ending:
            return "its sandbox is not there", 0.0
        handle, asked = live.handle, question.asked
        owner, labels = live.record.principal, live.record.labels
        act = acts.connection(owner, handle, labels, asked.host, asked.port, asked.rule)
        try:
            with context.of_client(question.gone):
                self._gate.open(act, lasting=False).within(handle)
        except AgentdError as error:
            meant = isinstance(error, (PolicyDenied, ApprovalDenied))
            cause = f": {error.cause}" if error.cause else ""
            return error.message + cause, DENIED_SECONDS if meant else REFUSED_SECONDS
        return "", None

    def _answer(self, question: _Question, reason: str, seconds: float | None) -> None:
        with self._lock:
            if self._closing:
                return  # so that the next daemon is asked
        asked = question.asked
        with contextlib.suppress(AgentdError):  # the supervisor is gone, and the sandbox with it
            self._link.tell(
                "answer",
                id=question.wall,
                host=asked.host,
                port=asked.port,
                allowed=not reason,
                reason=reason,
                seconds=seconds,
            )

    def _forget(self, number: int) -> None:
        with self._lock:
            self._open.pop(number, None)
