"""Spans by the OpenTelemetry SDK; imported where traces are asked for, and nowhere else."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agentd._version import __version__
from agentd.model.errors import AgentdError

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from agentd.daemon.observe.trace import Values

_HEADERS = ("traceparent", "tracestate")


class OtelTracer:
    """``exporter`` is the environment's unless given. Raises ImportError without its package."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        resource = Resource.create({"service.name": "agentd", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _exporter()))
        self._tracer = self._provider.get_tracer("agentd", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, values: "Values", parent: Mapping[str, str]) -> Iterator[None]:
        known = {key: parent[key] for key in _HEADERS if key in parent}
        # None: beneath the span that is going on in this thread.
        above: Context | None = self._propagator.extract(known) if known else None
        kind = SpanKind.SERVER if known else SpanKind.INTERNAL
        with self._tracer.start_as_current_span(
            name, above, kind, dict(values), record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except AgentdError as error:
                span.set_attribute("error.type", error.code)
                span.set_status(Status(StatusCode.ERROR, error.message[:200]))
                raise
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise

    def past(self, name: str, seconds: float, values: "Values") -> None:
        end = time.time_ns()
        begin = end - int(seconds * 1e9)
        self._tracer.start_span(name, attributes=dict(values), start_time=begin).end(end)

    def carrier(self) -> dict[str, str]:
        found: dict[str, str] = {}
        self._propagator.inject(found)
        return {name.upper(): value for name, value in found.items()}

    def close(self) -> None:
        self._provider.shutdown()


def _exporter() -> SpanExporter:
    if os.environ.get("OTEL_TRACES_EXPORTER") == "console":
        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
