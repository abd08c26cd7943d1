import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentd.daemon.observe import trace
from agentd.model.errors import NotFound

otel = pytest.importorskip("agentd.daemon.observe.otel", reason="OpenTelemetry is not installed")
PARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@pytest.fixture
def finished() -> Iterator[Callable[[], dict[str, Any]]]:
    """The spans by name, once all is done."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()

    def stop() -> dict[str, Any]:
        trace.stop()
        return {span.name: span for span in exporter.get_finished_spans()}

    assert trace.start(otel.OtelTracer(exporter)) == ""
    yield stop
    trace.stop()


def test_without_it_nothing_is_imported_and_nothing_done() -> None:
    code = (
        "import sys; from agentd.daemon.observe import trace; assert trace.start() == '';"
        "assert trace.carrier() == {}; trace.past('x', 1)\n"
        "with trace.span('a'), trace.span('b'): pass\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": "/usr/bin:/bin"})


@pytest.mark.parametrize(
    ("env", "is_wanted"),
    [
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_it_is_asked_for_by_its_own_variables(env: dict[str, str], is_wanted: bool) -> None:
    assert trace.wanted(env) is is_wanted


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "agentd.daemon.observe.otel", None)
    assert "-m pip install 'opentelemetry-sdk>=" in trace.start()
    with trace.span("nothing"):
        pass


def test_one_trace_from_the_caller_to_the_guest_and_back(
    finished: Callable[[], dict[str, Any]],
) -> None:
    with trace.span("agentd.exec", {"agentd.sandbox": "sbx-1"}, PARENT):
        carried = trace.carrier()
        with trace.span("guest.start"):
            pass
        trace.past("guest.command", 0.5, {"agentd.cause": "exited"})
    spans = finished()
    outer, command = spans["agentd.exec"], spans["guest.command"]
    assert f"{outer.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{outer.parent.span_id:016x}" == "b7ad6b7169203331"
    assert carried == {
        "TRACEPARENT": f"00-{outer.context.trace_id:032x}-{outer.context.span_id:016x}-01"
    }
    assert spans["guest.start"].parent.span_id == command.parent.span_id == outer.context.span_id
    assert command.end_time - command.start_time == 500_000_000
    assert dict(command.attributes) == {"agentd.cause": "exited"}


def test_an_error_is_told_by_its_code(finished: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(NotFound), trace.span("agentd.get"):
        raise NotFound("there is no sandbox 'x'")
    span = finished()["agentd.get"]
    assert span.attributes["error.type"] == "not_found"
    assert not span.status.is_ok and not span.events
