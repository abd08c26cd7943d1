"""What every HTTP request passes first: it gets an id, keeps its trace, and /metrics its guard."""

import contextvars
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from starlette.applications import Starlette

from agentd.ingest.rest.app import create_app
from agentd.ingest.service import Service
from agentd.ingest.web.api import Api, api_of
from agentd.ingest.web.exchange import Exchange
from agentd.ingest.web.limits import Limits
from agentd.ingest.web.link import link_of
from agentd.ingest.web.respond import error_answer
from agentd.ingest.web.threads import Room
from agentd.model import context
from agentd.model.errors import AgentdError

P = ParamSpec("P")
R = TypeVar("R")
_TRACE = (b"traceparent", b"tracestate")
_MAX_HEADER = 512  # tracestate's own bound, W3C Trace Context §3.3.1.5


def application(
    service: Service,
    limits: Limits,
    metrics: Callable[[], bytes] | None,
    *,
    public_metrics: bool,
) -> Starlette:
    app = create_app(service, limits=limits, metrics=metrics)
    api = api_of(app)
    for name, room in vars(api.threads).items():
        setattr(api.threads, name, _Carrying(room))
    app.add_middleware(Entry, api=api, public_metrics=public_metrics)
    return app


class Entry:
    """ASGI middleware. Answers carry the request's id as ``x-request-id``; the log has it, too."""

    def __init__(self, app: Any, api: Api, *, public_metrics: bool) -> None:
        self._app = app
        self._api = api
        self._public = public_metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        trace = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _TRACE and len(value) <= _MAX_HEADER
        }
        gone, link = context.Gone(), link_of(scope)
        link.on_lost(gone.set)
        try:
            with context.of_client(gone):
                await self._serve(scope, receive, send, trace)
        finally:
            link.forget(gone.set)

    async def _serve(self, scope: Any, receive: Any, send: Any, trace: dict[str, str]) -> None:
        with context.request(context.new_id(), trace) as id_:
            header = (b"x-request-id", id_.encode())

            async def tell(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message = {**message, "headers": [*message["headers"], header]}
                await send(message)

            if scope["path"] == "/metrics" and not self._public:
                exchange = Exchange(self._api, scope, receive, tell)
                try:
                    (await exchange.authenticate()).require("read")
                except AgentdError as error:
                    await exchange.answer(error_answer(error))
                    return
            await self._app(scope, receive, tell)


class _Carrying:
    """A room whose calls know whose request they are for."""

    def __init__(self, room: Room) -> None:
        self.name = room.name
        self.close = room.close
        self._run = room.run

    async def run(self, call: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        mine = contextvars.copy_context()
        return await self._run(lambda: mine.run(call, *args, **options))
