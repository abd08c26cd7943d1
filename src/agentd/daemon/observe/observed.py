"""Every call of the service, and of the gatekeeper: timed, counted, traced and told to the log."""

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from agentd.daemon.observe import meter, trace
from agentd.model import context
from agentd.model.errors import AgentdError, Forbidden, QuotaExceeded, Refused

if TYPE_CHECKING:
    from agentd.daemon.observe.log import Log

Method = TypeVar("Method", bound=Callable[..., Any])
Piece = TypeVar("Piece")
Refusal = Callable[[str, str, str, Refused], None]
_OURS = frozenset(
    ("internal", "sandbox_error", "backend_lost", "guest_error", "store_error", "store_busy")
)


class Observer:
    """Counts, traces and logs each call. Thread-safe."""

    def __init__(
        self,
        counts: meter.Meter = meter.NONE,
        log: "Log | None" = None,
        denied: Refusal | None = None,
    ) -> None:
        """``denied(op, principal, sandbox, error)`` is told what somebody we know may not do, or
        has no room for, where no record tells of it yet."""
        self._meter = counts
        self._log = log
        self._denied = denied

    def over(
        self, op: str, who: str, sandbox: str, begun: float, error: BaseException | None
    ) -> None:
        """Tell of a call that ended, with ``error`` if it failed; ``begun``: perf_counter."""
        seconds = time.perf_counter() - begun
        status, words = "ok", ""
        if isinstance(error, AgentdError):
            status, words = error.code, str(error)
            # A quota's without a name is of one who asks too often, and was not let in.
            kinds = Forbidden | QuotaExceeded if who else Forbidden
            if isinstance(error, kinds) and not error.is_recorded and self._denied is not None:
                self._denied(op, who, sandbox, error)
        elif isinstance(error, GeneratorExit):
            status = "cancelled"
        elif error is not None:
            status, words = "internal", type(error).__name__
        self._meter.request(op, status, seconds)
        log = self._log
        if log is None:
            return
        level, event = "debug", "request"
        if status in _OURS:
            level, event = "warning", "request failed"
        elif status != "ok":
            level, event = "info", "request refused"
        if log.wants(level):
            fields = {"sandbox": sandbox, "principal": who, "error": words}
            known = {name: value for name, value in fields.items() if value}
            log.say(level, event, op=op, code=status, ms=round(seconds * 1000, 2), **known)

    def pieces(self, op: str, who: str, sandbox: str, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Yield the pieces; the call counts when its caller has taken all, or gone away."""
        begun, failure = time.perf_counter(), None
        try:
            yield from pieces
        except BaseException as error:
            failure = error
            raise
        finally:
            self.over(op, who, sandbox, begun, failure)


def observed(op: str) -> Callable[[Method], Method]:
    """Tell the ``_observer`` of a method's object of each call, as an ``op`` of its ``_who``.

    Where the first argument is a sandbox's id, it is an operation on that one.
    """

    def decorate(method: Method) -> Method:
        first = next(iter(list(inspect.signature(method).parameters)[1:]), "")

        @functools.wraps(method)
        def do(self: Any, *args: Any, **options: Any) -> Any:
            if not context.current():  # asked by no door, but from within this process
                with context.request(context.new_id()):
                    return do(self, *args, **options)
            id_ = args[0] if args else options.get(first)
            sandbox = id_ if isinstance(id_, str) and id_.startswith("sbx-") else ""
            who = "" if self._who is None else self._who.name
            begun, failure = time.perf_counter(), None
            token, working_for = context.sandbox.set(sandbox), context.principal.set(who)
            try:
                with trace.operation(op, who, sandbox):
                    return method(self, *args, **options)
            except BaseException as error:
                failure = error
                raise
            finally:
                found = context.sandbox.get()
                context.sandbox.reset(token)
                context.principal.reset(working_for)
                self._observer.over(op, who, found, begun, failure)

        return cast("Method", do)

    return decorate
