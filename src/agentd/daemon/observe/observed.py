"""The service and the gatekeeper, with every call timed, counted, traced and told to the log."""

import inspect
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from agentd.daemon.observe import trace
from agentd.daemon.observe.log import Log, about
from agentd.daemon.observe.meter import Meter
from agentd.ingest.service import Service
from agentd.model import context
from agentd.model.credential import Credential
from agentd.model.errors import AgentdError, Forbidden
from agentd.model.gatekeeper import Gatekeeper
from agentd.model.principal import Principal

_PLAIN = frozenset(("ready", "version"))  # asked all the time
# ``once`` belongs to the loop, and ``watch`` and ``tunnel`` take as long as their caller stays.
_STAYING = frozenset(("once", "watch", "tunnel"))
_BEGUN = "delete_at_once"  # counted as what it begins
_OURS = frozenset(
    ("internal", "sandbox_error", "backend_lost", "guest_error", "store_error", "store_busy")
)
OPERATIONS = tuple(
    name
    for name, _ in inspect.getmembers(Service, inspect.isfunction)
    if not name.startswith("_") and name not in (*_PLAIN, *_STAYING, _BEGUN)
)


Refusal = Callable[[str, str, str, Forbidden], None]


def observed(
    service: Service,
    meter: Meter,
    log: Log,
    forbidden: Refusal | None = None,
    callers: type[Principal] = Principal,
) -> Service:
    """It in front of ``service``. ``forbidden(op, principal, sandbox, error)`` is told of what one
    whom we know may not do. Who asks must be one of ``callers``: a door makes none itself."""
    made = _Observed(service, meter, log, forbidden, callers, OPERATIONS)
    for name in _PLAIN:
        setattr(made, name, getattr(service, name))
    for name in _STAYING:
        setattr(made, name, made.admitting(getattr(service, name)))
    return cast("Service", made)


def observed_gatekeeper(
    gatekeeper: Gatekeeper, meter: Meter, log: Log, forbidden: Refusal | None = None
) -> Gatekeeper:
    """The same in front of ``gatekeeper``."""
    made = _Observed(gatekeeper, meter, log, forbidden, Credential, ("authenticate",))
    made.peer = gatekeeper.peer  # type: ignore[attr-defined]  # asked once a connection
    return cast("Gatekeeper", made)


class _Observed:
    def __init__(
        self,
        target: Any,
        meter: Meter,
        log: Log,
        forbidden: Refusal | None,
        first: type,
        operations: Iterable[str],
    ) -> None:
        self._target = target
        self._meter = meter
        self._log = log
        self._forbidden = forbidden
        self._first = first  # what the first argument must be
        for name in operations:
            setattr(self, name, self._watched(name, getattr(target, name)))

    def admitting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """It, but for callers that were made elsewhere."""

        names = _first_names(call)

        def checked(*args: Any, **options: Any) -> Any:
            args = _in_order(args, options, names)
            self._check(args)
            return call(*args, **options)

        return checked

    def _check(self, args: Any) -> None:
        if not args or not isinstance(args[0], self._first):
            raise TypeError("who asks was not told by the gatekeeper: a door made it up")

    def delete_at_once(self, who: Principal, id_: str) -> Callable[[], None] | None:
        self._check((who,))
        rest = self._target.delete_at_once(who, id_)
        if rest is None:
            return None
        return lambda: self._do("delete", lambda *_: rest(), (who, id_), {})

    def _watched(self, op: str, call: Callable[..., Any]) -> Callable[..., Any]:
        names = _first_names(call)
        if inspect.isgeneratorfunction(call) or op in ("read_file", "read_tar"):

            def stream(*args: Any, **options: Any) -> Iterator[Any]:
                # What is wrong with the request is raised before anything is asked of the answer.
                args = _in_order(args, options, names)
                return self._pieces(op, self._do(op, call, args, options), args)

            return stream

        def do(*args: Any, **options: Any) -> Any:
            args = _in_order(args, options, names)
            return self._do(op, call, args, options)

        return do

    def _do(self, op: str, call: Callable[..., Any], args: Any, options: Any) -> Any:
        begun = time.perf_counter()
        who, sandbox = _whose(args)
        status, words = "ok", ""
        with context.request(context.current() or context.new_id(), context.trace_headers()):
            try:
                with (
                    about(sandbox=sandbox),
                    trace.span(f"agentd.{op}", _values(who, sandbox), context.trace_headers()),
                ):
                    self._check(args)
                    return call(*args, **options)
            except AgentdError as error:
                status, words = error.code, str(error)
                if isinstance(error, Forbidden) and self._forbidden is not None:
                    self._forbidden(op, who, sandbox, error)
                raise
            except BaseException as error:
                status, words = "internal", type(error).__name__
                raise
            finally:
                seconds = time.perf_counter() - begun
                self._meter.request(op, status, seconds)
                self._tell(op, who, sandbox, status, words, seconds)

    def _pieces(self, op: str, pieces: Iterator[Any], args: Any) -> Iterator[Any]:
        """Counted when the caller has taken all of it, or gone away."""
        begun = time.perf_counter()
        status = "ok"
        try:
            yield from pieces
        except AgentdError as error:
            status = error.code
            raise
        except GeneratorExit:
            status = "cancelled"
            raise
        except BaseException:
            status = "internal"
            raise
        finally:
            seconds = time.perf_counter() - begun
            self._meter.request(f"{op}_data", status, seconds)
            who, sandbox = _whose(args)
            self._tell(f"{op}_data", who, sandbox, status, "", seconds)

    def _tell(
        self, op: str, who: str, sandbox: str, status: str, words: str, seconds: float
    ) -> None:
        level, event = "debug", "request"
        if status in _OURS:
            level, event = "warning", "request failed"
        elif status != "ok":
            level, event = "info", "request refused"
        if not self._log.wants(level):
            return
        fields = {"sandbox": sandbox, "principal": who, "error": words}
        known = {name: value for name, value in fields.items() if value}
        self._log.say(level, event, op=op, code=status, ms=round(seconds * 1000, 2), **known)


def _first_names(call: Callable[..., Any]) -> list[str]:
    """Of who asks, and of the sandbox, where it is one's."""
    return list(inspect.signature(call).parameters)[:2]


def _in_order(args: Any, options: dict[str, Any], names: list[str]) -> Any:
    """The arguments of ``names`` by their place, however a door gave them; the rest as it was."""
    for name in names[len(args) :]:
        if name not in options:
            break
        args = (*args, options.pop(name))
    return args


def _whose(args: Any) -> tuple[str, str]:
    """The principal's name and the sandbox's id, where the call has them."""
    who = args[0].name if args and isinstance(args[0], Principal) else ""
    id_ = args[1] if len(args) > 1 and isinstance(args[1], str) else ""
    return who, id_ if id_.startswith("sbx-") else ""


def _values(who: str, sandbox: str) -> trace.Values:
    values = {"agentd.principal": who, "agentd.sandbox": sandbox}
    return {name: value for name, value in values.items() if value}
