"""The daemon's log: one line an event, as JSON or as text, with whose request and which sandbox.

Nothing secret gets in (model/redact.py), and no flood of one event hides another (rate.py). What
other packages log by the standard library's ``logging`` comes out in the same form.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import msgspec

from agentd.daemon.observe.rate import Bound
from agentd.model import context, redact
from agentd.model.characters import without_surrogates

# Where rich can be had structlog imports it for tracebacks in colour, which no log of a daemon has,
# and which are a fifth of the time until one is ready. None there is "cannot be had" (PEP 328).
_rich = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
    from structlog.typing import EventDict, WrappedLogger
finally:
    del sys.modules["rich"]
    if _rich is not None:
        sys.modules["rich"] = _rich

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_FIRST = ("timestamp", "level", "event", "request", "sandbox")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/+,@[]")
_FOREIGN = ("uvicorn", "asyncio", "agentd")


class EventReport(Protocol):
    """Takes events: the same words each time, and what they are about in ``fields``."""

    def __call__(self, event: str, /, **fields: object) -> object: ...


class Log:
    """Thread-safe. ``log.info("sandbox ended", sandbox=id, reason=reason)``: the event is the same
    words every time, and what differs is a field."""

    def __init__(
        self,
        level: str = "info",
        form: str = "text",
        *,
        write: Callable[[bytes], object] | None = None,
        bound: Bound | None = None,
    ) -> None:
        """``write`` takes one whole line; standard error unless given."""
        self.bound = bound or Bound()
        self.lines = dict.fromkeys(LEVELS, 0)
        self._write = write or _to_stderr
        self._lock = threading.Lock()
        self._level = LEVELS[level]
        self._form = form
        self._handler = _Foreign(self)
        self._logger = structlog.wrap_logger(
            _Line(self._put),
            processors=[
                self._admit,
                _add_context,
                structlog.processors.TimeStamper("iso", utc=True),
                structlog.processors.format_exc_info,
                _redacted,
                self._render,
            ],
            wrapper_class=structlog.BoundLogger,
            context_class=dict,
        )

    def set(self, level: str, form: str) -> None:
        """Set it from the next line on."""
        self._level, self._form = LEVELS[level], form

    def wants(self, level: str) -> bool:
        return LEVELS[level] >= self._level

    def debug(self, event: str, /, **fields: object) -> None:
        self.say("debug", event, **fields)

    def info(self, event: str, /, **fields: object) -> None:
        self.say("info", event, **fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self.say("warning", event, **fields)

    def error(self, event: str, /, **fields: object) -> None:
        self.say("error", event, **fields)

    def say(self, level: str, event: str, /, **fields: object) -> None:
        """Write a line. Never raises: nothing fails because it could not be told."""
        if self.wants(level):
            with suppress(Exception):
                getattr(self._logger, level)(event, **fields)

    def capture(self) -> None:
        """Take over what other packages log; ``release`` gives it back."""
        for name in _FOREIGN:
            logger = logging.getLogger(name)
            logger.addHandler(self._handler)
            logger.propagate = False
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        logging.captureWarnings(True)
        logging.getLogger("py.warnings").addHandler(self._handler)

    def release(self) -> None:
        logging.captureWarnings(False)
        for name in (*_FOREIGN, "py.warnings"):
            logger = logging.getLogger(name)
            logger.removeHandler(self._handler)
            logger.propagate = True

    def _admit(self, _: WrappedLogger, level: str, event: EventDict) -> EventDict:
        trouble = LEVELS[level] >= LEVELS["warning"]
        left_out = self.bound.admit(str(event["event"]), trouble=trouble)
        if left_out is None:
            raise structlog.DropEvent
        event["level"] = level
        if left_out:
            event["left_out"] = left_out
        return event

    def _render(self, _: WrappedLogger, level: str, event: EventDict) -> bytes:
        with self._lock:
            self.lines[level] += 1
        ordered = {name: event.pop(name) for name in _FIRST if name in event} | {**event}
        return _json(ordered) if self._form == "json" else _text(ordered)

    def _put(self, line: bytes) -> None:
        with self._lock:
            self._write(line + b"\n")


class _Line:
    """Takes the finished lines from structlog."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self.debug = self.info = self.warning = self.error = put


class _Foreign(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        number = max(10, min(40, record.levelno // 10 * 10))
        level = next(name for name, known in LEVELS.items() if known == number)
        try:
            event = record.getMessage()
        except Exception:
            event = str(record.msg)
        self._log.say(level, event, logger=record.name, exc_info=record.exc_info or None)


def _add_context(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if request := context.current():
        event.setdefault("request", request)
    if sandbox := context.sandbox.get():
        event.setdefault("sandbox", sandbox)
    return event


def _redacted(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return redact.fields(event)


def _json(event: EventDict) -> bytes:
    try:
        return msgspec.json.encode(event)
    except UnicodeEncodeError:  # a lone surrogate: a name that is no UTF-8
        return msgspec.json.encode({k: without_surrogates(str(v)) for k, v in event.items()})


def _text(event: EventDict) -> bytes:
    head = [str(event.pop(name)) for name in ("timestamp", "level") if name in event]
    # An event of ours is plain words; one of another package may be anything.
    head.append("".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(event.pop("event"))))
    pairs = [f"{name}={_word(value)}" for name, value in event.items()]
    return " ".join(head + pairs).encode("utf-8", "backslashreplace")


def _word(value: object) -> str:
    if isinstance(value, list | tuple):
        value = ",".join(str(item) for item in value)
    word = value if isinstance(value, str) else str(value)
    if word and _PLAIN.issuperset(word):
        return word
    return '"' + "".join(_escaped(c) for c in word) + '"'


def _escaped(c: str) -> str:
    # A reader's terminal must not obey it, nor take it for another line or field.
    if c in '"\\':
        return "\\" + c
    return c if c.isprintable() else ascii(c)[1:-1]


def _to_stderr(line: bytes) -> None:
    # One write a line, so that lines of several writers do not mix. A reader that went away must
    # not end the daemon.
    with suppress(OSError):
        os.write(2, line)
