"""One operation that is allowed: who asks for what, the decision, and the records of it.

    admission = gate.open(act)                  decided, approved, written down
    with admission:                             what a request waits for ends with the block
        with admission.obliging() as most:      what must hold; a refusal is written down
            ...
        admission.begin()                       one START
        admission.end(result, outputs)          one END, and its receipt

The operation owns it. What outlives its request (a detached command, a terminal, a watch, a tunnel)
takes it along and ends it where it ends itself; what a daemon did not live to end, the next one
does.
"""

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from agentd.audit.errors import AuditError
from agentd.daemon.admission import acts, oblige, records
from agentd.model import context
from agentd.model.audit import Kind
from agentd.model.begun import begun
from agentd.model.errors import Refused

if TYPE_CHECKING:
    from agentd.audit.receipt import Execution
    from agentd.daemon.admission.acts import Act
    from agentd.daemon.admission.records import Records
    from agentd.model.decision import Decision, Obligations
    from agentd.model.result import Result
    from agentd.sandbox.handle import SandboxHandle

Piece = TypeVar("Piece")
MISUSE = "network.secret"
_MOST_REFUSED = 64  # that are written of a command


class Admission:
    """Ends once: what is told of its end later is left out of the log. Not thread-safe."""

    def __init__(
        self,
        records: "Records",
        act: "Act",
        decision: "Decision",
        began: float,
        where: records.Ran = records.NOWHERE,
        *,
        ended: bool = False,
    ) -> None:
        """``began``: seconds since 1970. ``where`` may be set until it begins. ``ended``: its
        END is in the log already."""
        self.act = act
        self.decision = decision
        self.began = began
        self.where = where
        self.handle: SandboxHandle | None = None  # of the sandbox that is there, if any
        self._records = records
        self._ended = ended
        self._busy: SandboxHandle | None = None  # whose operation it is, while that goes on

    @property
    def is_cut_off(self) -> bool:
        """Whether what comes to no end does so for the daemon shuts down: its client is there."""
        return self._records.shuts_down and not context.client().has_left

    @property
    def obligations(self) -> "Obligations":
        return self.decision.obligations

    @contextlib.contextmanager
    def obliging(self) -> "Iterator[Obligations]":
        """Yield what must hold; write down what is refused on its account within the block."""
        try:
            yield self.decision.obligations
        except Refused as error:
            self._refuse(error)
            raise

    def within(self, handle: "SandboxHandle") -> None:
        """Check the sandbox. Raises PolicyDenied where it is less than what must hold."""
        try:
            oblige.existing_sandbox(handle.spec, handle.level, self.decision.obligations)
        except Refused as error:
            self._refuse(error)
            raise

    def begin(self, process: str | None = None, *, written: bool = False) -> None:
        """Write the START.

        ``process``: the id of a command whose begin is acknowledged and whose end nobody waits for.
        Its START is synced; should the daemon be killed now, the next one finds it by that.
        ``written``: it is in the file when this returns, where the daemon's own death leaves it.
        """
        if self.handle is not None:
            self._end_busy()
            self._busy = self.handle
            self._busy.begin_operation()
        fields: dict[str, object] = {} if process is None else {"process": process}
        if not self.act.receipt:
            fields["receipt"] = False
        try:
            self._records.write(
                Kind.START, self.act, fields, synced=process is not None, written=written
            )
        except BaseException:
            self._ended = True  # nothing has begun
            self._end_busy()
            raise

    def unconnected(self, refused: Sequence[tuple[str, bool]]) -> None:
        """Write down what the sandbox's network refused meanwhile, each by itself: as denials of
        ``network.connect``, and of ``network.secret`` where a placeholder went to a host that is
        not its secret's, which come first. They are bounded; each has its reason, and whether it is
        one of the latter."""
        for reason, alarm in sorted(refused, key=lambda each: not each[1])[:_MOST_REFUSED]:
            act = msgspec.structs.replace(self.act, name=MISUSE if alarm else acts.CONNECT)
            self._records.write(Kind.DENIAL, act, {"reasons": [reason]})

    def end(self, result: "Result", outputs: records.Digests, input_digest: str = "") -> str:
        """Write the END of a command, or of a call that a command did; return the receipt's id.

        Raises AuditError where it cannot be written down.
        """
        return self._end(records.of_result(self, result, outputs, input_digest))

    def done(self, outputs: records.Digests = records.NO_OUTPUTS, input_digest: str = "") -> str:
        """Write the END of what no command did; return the receipt's id. Raises AuditError."""
        return self._end(records.of_value(self, outputs, input_digest))

    def fail(self, error: BaseException | None) -> None:
        """Write the END of what failed, or (None) was cut off before its end."""
        # Whoever is told of the failure is told that first.
        with contextlib.suppress(AuditError):
            self._end(records.of_error(self, error))

    def over(self, pieces: Iterable[Piece]) -> Generator[Piece, None, None]:
        """Begin, and end with the last of ``pieces``, or where they are let go of."""
        return begun(self._over(pieces))

    def _over(self, pieces: Iterable[Piece]) -> Generator[Piece | None, None, None]:
        self.begin(written=True)
        with self:
            yield None
            yield from pieces

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if self._ended:
            return
        if error is None:
            self.done()
        else:
            self.fail(None if isinstance(error, GeneratorExit) else error)

    def _refuse(self, error: Refused) -> None:
        self._ended = True  # nothing has begun
        fields = {"reasons": [str(error)], "code": error.code}
        self._records.write(Kind.DENIAL, self.act, fields)
        error.is_recorded = True

    def _end(self, execution: "Execution") -> str:
        if self._ended:
            return self.act.request
        self._ended = True
        self._end_busy()
        return self._records.end(self.act, execution)

    def _end_busy(self) -> None:
        busy, self._busy = self._busy, None
        if busy is not None:
            busy.end_operation()


def outputs_of(result: "Result") -> Mapping[str, str]:
    """Return the digests of a command's streams, "sha256:HEX" by name."""
    streams = (("stdout", result.stdout), ("stderr", result.stderr))
    return {name: records.digest(data) for name, data in streams if data}
