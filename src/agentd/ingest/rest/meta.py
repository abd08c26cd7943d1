"""The daemon itself."""

from collections.abc import Mapping
from typing import Any

from agentd.ingest.rest.api import Exchange, error_answer
from agentd.ingest.rest.operation import Arguments, OperationTable
from agentd.ingest.web.errors import Draining
from agentd.model.answer import Answer
from agentd.model.api import BackendView, Stats
from agentd.model.errors import NotFound, Unavailable
from agentd.model.service import Service
from agentd.model.template import TemplateView

OPERATIONS = OperationTable()
METRICS = OperationTable()
_PLAIN = "text/plain"
_TEXT = {"content-type": "text/plain; charset=utf-8"}
_METRICS = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}


@OPERATIONS.row("GET", "/v1/version", "none")
def _version(service: Service, a: Arguments) -> Mapping[str, str]:
    """Tell the version of the daemon and of this interface."""
    return service.machine.version()


@OPERATIONS.row("GET", "/v1/backends", "read", waits=True)
def _backends(service: Service, a: Arguments) -> tuple[BackendView, ...]:
    """List the walls there are, and what those lack that cannot be used."""
    return service.machine.backends()


@OPERATIONS.row("GET", "/v1/templates", "read")
def _templates(service: Service, a: Arguments) -> tuple[TemplateView, ...]:
    """List what the configuration says sandboxes may be made as, and how many stand ready."""
    return service.machine.templates()


@OPERATIONS.row("GET", "/v1/stats", "read")
def _stats(service: Service, a: Arguments) -> Stats:
    """Count how much of everything there is now."""
    return service.machine.stats()


@OPERATIONS.row("GET", "/healthz", "none", answer=_PLAIN)
async def _healthz(exchange: Exchange, _: dict[str, Any]) -> None:
    """Tell whether the daemon answers at all."""
    await exchange.answer(Answer(200, b"ok\n", _TEXT))


@OPERATIONS.row("GET", "/readyz", "none", answer=_PLAIN)
async def _readyz(exchange: Exchange, _: dict[str, Any]) -> None:
    """Tell whether it takes work."""
    if exchange.web.draining:
        raise Draining()
    if why := exchange.web.ready():
        await exchange.answer(error_answer(Unavailable(why)))
        return
    await exchange.answer(Answer(200, b"ok\n", _TEXT))


@METRICS.row("GET", "/metrics", "read", answer=_PLAIN)
async def _metrics(exchange: Exchange, _: dict[str, Any]) -> None:
    """Count everything for Prometheus; for anybody where metrics.public says so."""
    metrics = exchange.web.metrics
    if metrics is None:
        raise NotFound("there are no metrics", remediation="set metrics.enabled = true")
    if not metrics.public:
        (await exchange.authenticate()).require("metrics", ("read",))
    text = await exchange.web.threads.short.run(metrics.text)
    await exchange.answer(Answer(200, text, _METRICS))
