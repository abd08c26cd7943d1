"""The daemon itself."""

from typing import Any

from agentd.ingest.rest.api import Exchange
from agentd.ingest.rest.operation import Operation
from agentd.ingest.rest.respond import error_answer
from agentd.ingest.web.errors import Draining
from agentd.model.answer import Answer
from agentd.model.api import BackendView, Stats
from agentd.model.errors import NotFound, Unavailable

_TEXT = {"content-type": "text/plain; charset=utf-8"}
_METRICS = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}


async def _healthz(exchange: Exchange, _: dict[str, Any]) -> None:
    await exchange.answer(Answer(200, b"ok\n", _TEXT))


async def _readyz(exchange: Exchange, _: dict[str, Any]) -> None:
    if exchange.web.draining:
        raise Draining("the daemon is about to end")
    if why := exchange.web.ready():
        await exchange.answer(error_answer(Unavailable(why)))
        return
    await exchange.answer(Answer(200, b"ok\n", _TEXT))


async def _metrics(exchange: Exchange, _: dict[str, Any]) -> None:
    metrics = exchange.web.metrics
    if metrics is None:
        raise NotFound("there are no metrics", remediation="set metrics.enabled = true")
    if not metrics.public:
        (await exchange.authenticate()).caller.require("read")
    text = await exchange.web.threads.short.run(metrics.text)
    await exchange.answer(Answer(200, text, _METRICS))


METRICS = Operation(
    method="GET",
    path="/metrics",
    scope="read",
    help="for Prometheus; for anybody where metrics.public says so",
    stream=_metrics,
    answer="text/plain",
)
OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/version",
        scope="none",
        help="of the daemon and of this interface",
        call=lambda s, a: s.machine.version(),
        answer=dict[str, str],
    ),
    Operation(
        method="GET",
        path="/v1/backends",
        scope="read",
        help="the walls there are, and what those lack that cannot be used",
        call=lambda s, a: s.machine.backends(),
        answer=list[BackendView],
        waits=True,
    ),
    Operation(
        method="GET",
        path="/v1/stats",
        scope="read",
        help="how much of everything there is now",
        call=lambda s, a: s.machine.stats(),
        answer=Stats,
    ),
    Operation(
        method="GET",
        path="/healthz",
        scope="none",
        help="whether the daemon answers at all",
        stream=_healthz,
        answer="text/plain",
    ),
    Operation(
        method="GET",
        path="/readyz",
        scope="none",
        help="whether it takes work",
        stream=_readyz,
        answer="text/plain",
    ),
)
