"""Spans of OpenTelemetry, where it is installed and asked for; nothing at all otherwise.

It is asked for by its own variables, "OpenTelemetry environment variable specification":
OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_TRACES_EXPORTER.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from agentd.model import context

if TYPE_CHECKING:
    from agentd.daemon.observe.otel import OtelTracer

_ASKED = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
)
Values = Mapping[str, "str | int | float | bool"]
_EMPTY: Values = {}
_NO_PARENT: Mapping[str, str] = {}
_tracer: "OtelTracer | None" = None
_NOTHING: AbstractContextManager[Any] = nullcontext()


def wanted(env: Mapping[str, str]) -> bool:
    off = env.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not off and any(env.get(name, "none") not in ("", "none") for name in _ASKED)


def start(tracer: "OtelTracer | None" = None) -> str:
    """Return why there will be no traces though they are asked for, or ""."""
    global _tracer  # noqa: PLW0603  one a process, as OpenTelemetry has it
    if tracer is None and wanted(os.environ):
        try:
            from agentd.daemon.observe.otel import OtelTracer
        except ImportError as error:
            from agentd.model import install

            return (
                f"traces need OpenTelemetry: {install.command(*install.EXTRAS['otel'])} ({error})"
            )
        tracer = OtelTracer()
    _tracer = tracer
    return ""


def stop() -> None:
    """Send what has not been sent."""
    global _tracer
    tracer, _tracer = _tracer, None
    if tracer is not None:
        tracer.close()


def span(
    name: str, values: Values = _EMPTY, parent: Mapping[str, str] = _NO_PARENT
) -> AbstractContextManager[Any]:
    """Trace what is done within the block. ``parent`` is a request's headers: traceparent,
    tracestate."""
    return _NOTHING if _tracer is None else _tracer.span(name, values, parent)


def operation(op: str, who: str, sandbox: str) -> AbstractContextManager[Any]:
    """Return a span of one that a request asked for, beneath the trace that this came with."""
    if _tracer is None:
        return _NOTHING
    values = {"agentd.principal": who, "agentd.sandbox": sandbox}
    known = {name: value for name, value in values.items() if value}
    return _tracer.span(f"agentd.{op}", known, context.trace_headers())


def past(name: str, seconds: float, values: Values = _EMPTY) -> None:
    """Trace a span that has just ended, and took so many seconds: the guest's own measure."""
    if _tracer is not None:
        _tracer.past(name, seconds, values)


def carrier() -> dict[str, str]:
    """Return TRACEPARENT and TRACESTATE for a command; {} where nothing is traced."""
    return {} if _tracer is None else _tracer.carrier()
