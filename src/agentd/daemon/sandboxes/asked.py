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

MOST, MOST_OF_ONE = 128, 32  # that are decided on at a time, and of one owner's sandboxes
#: Seconds that a refusal holds: one that somebody or a policy meant, and any other.
DENIED_SECONDS, REFUSED_SECONDS = 600.0, 10.0
_EARLY = MAX_OPEN * MOST  # that are kept until we are started


class AnswersWalls(Protocol):
    def tell(self, op: str, **fields: object) -> None: ...


class _Question(NamedTuple):
    live: Live
    asked: AskedPlace
    gone: context.Gone  # set: nobody waits for the decision

    @property
    def owner(self) -> str:
        return self.live.record.principal


class _Answer(NamedTuple):
    allowed: bool
    reason: str
    seconds: float | None = REFUSED_SECONDS  # that it holds; None: for good


class AskedConnections:
    """Thread-safe. Takes what it is told from the first moment on, and decides once started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._early: list[tuple[str, AskedPlace]] | None = []
        self._open: dict[int, _Question] = {}
        self._closing = False
        self._count = 0
        self._link: AnswersWalls
        self._gate: Gate
        self._all: Callable[[], Iterable[Live]]

    def tell(self, message: dict[str, object]) -> None:
        """Take a connection that waits; ``id`` is its wall's. Never blocks for long.
        Raises KeyError, ValueError."""
        asked = AskedPlace(str(message["host"]), int(str(message["port"])), str(message["rule"]))
        wall = str(message["id"])
        with self._lock:
            if self._early is not None:
                self._early = [*self._early, (wall, asked)][-_EARLY:]
                return
        self._begin(wall, asked)

    def start(self, link: AnswersWalls, gate: Gate, every: Callable[[], Iterable[Live]]) -> None:
        """Begin to decide; ``every`` tells the sandboxes that there are."""
        self._link, self._gate, self._all = link, gate, every
        with self._lock:
            early, self._early = self._early or [], None
        for wall, asked in early:
            self._begin(wall, asked)

    def rules_changed(self, live: Live) -> None:
        """Drop questions that its rules do not ask any more: the relay has judged them anew."""
        with self._lock:
            of_it = [one for one in self._open.values() if one.live is live]
        if of_it:
            spec = live.handle.spec
            table = EgressTable(compile_table(spec.egress, spec.egress_bounds, spec.secrets))
            for one in of_it:
                if not table.asks(one.asked.host, one.asked.port):
                    one.gone.set()

    def close(self) -> None:
        """Decide nothing any more; the supervisor refuses what is open as we go. Idempotent."""
        with self._lock:
            self._closing = True
            left = list(self._open.values())
        for question in left:
            question.gone.set()

    def _begin(self, wall: str, asked: AskedPlace) -> None:
        live = next((one for one in self._all() if one.wall.id == wall), None)
        if live is None:
            self._answer(wall, asked, _Answer(False, "its sandbox is not there", 0.0))
            return
        question = _Question(live, asked, context.Gone())
        with self._lock:
            if self._closing:
                return
            self._count += 1
            number, why = self._count, self._hindrance(question.owner)
            if not why:
                self._open[number] = question
        if why:
            self._answer(wall, asked, _Answer(False, why))
            return
        work = threading.Thread(target=self._run, args=(number, question), name="asked")
        work.daemon = True
        try:
            work.start()
        except RuntimeError as error:  # no thread is left
            self._forget(number)
            self._answer(wall, asked, _Answer(False, f"it cannot be decided on: {error}"))

    def _hindrance(self, owner: str) -> str:
        """Under ``_lock``."""
        if len(self._open) >= MOST:
            return f"{MOST} connections wait to be decided on"
        if sum(one.owner == owner for one in self._open.values()) >= MOST_OF_ONE:
            return f"{MOST_OF_ONE} connections of {owner} wait to be decided on"
        return ""

    def _run(self, number: int, question: _Question) -> None:
        try:
            answer = self._decided(question)
        except Exception as error:
            guard.tell(error)
            answer = _Answer(False, "the daemon failed to decide")
        finally:
            self._forget(number)
        self._answer(question.live.wall.id, question.asked, answer)

    def _decided(self, question: _Question) -> _Answer:
        live, asked = question.live, question.asked
        handle, labels = live.handle, live.record.labels
        act = acts.connection(question.owner, handle, labels, asked.host, asked.port, asked.rule)
        try:
            with context.of_client(question.gone):
                self._gate.open(act, lasting=False).within(handle)
        except AgentdError as error:
            meant = isinstance(error, (PolicyDenied, ApprovalDenied))
            cause = f": {error.cause}" if error.cause else ""
            seconds = DENIED_SECONDS if meant else REFUSED_SECONDS
            return _Answer(False, error.message + cause, seconds)
        return _Answer(True, "", None)

    def _answer(self, wall: str, asked: AskedPlace, answer: _Answer) -> None:
        with self._lock:
            if self._closing:
                return  # so that the next daemon is asked
        with contextlib.suppress(AgentdError):  # the supervisor is gone, and the sandbox with it
            place = {"host": asked.host, "port": asked.port}
            self._link.tell("answer", id=wall, **place, **answer._asdict())

    def _forget(self, number: int) -> None:
        with self._lock:
            self._open.pop(number, None)
