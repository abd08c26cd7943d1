"""Commands: run to their end, or started, fed and signalled."""

from typing import Any

from agentd.ingest.rest.api import Exchange
from agentd.ingest.rest.operation import Arguments, Operation
from agentd.ingest.rest.output import OUTPUT
from agentd.ingest.rest.pages import QUERY, page
from agentd.ingest.rest.query import Parameter
from agentd.ingest.rest.respond import Reply
from agentd.model.answer import Answer
from agentd.model.api import (
    ExecBody,
    ProcessView,
    ResultView,
    RunBody,
    SignalBody,
)
from agentd.model.service import Service
from agentd.model.spec import Pty

_ALL = "/v1/sandboxes/{id}/processes"
_ONE = _ALL + "/{proc}"


def _exec(service: Service, a: Arguments) -> object:
    if a.body.wait:
        return service.commands.exec(a.id, a.body)
    return Reply(201, service.commands.start(a.id, a.body))


def _signal(service: Service, a: Arguments) -> None:
    service.commands.signal(a.id, a.process, a.body.signal, a.body.target)


def _resize(service: Service, a: Arguments) -> None:
    service.commands.resize(a.id, a.process, a.body.rows, a.body.cols)


def _list(service: Service, a: Arguments) -> Reply:
    return page(service.commands.list(a.id), lambda p: (p.started, p.id), **a.query)


async def _stdin(exchange: Exchange, query: dict[str, Any]) -> None:
    """Piece by piece: what the process does not read, the client does not get rid of."""
    service = await exchange.authenticate()
    id_, process = exchange.path["id"], exchange.path["proc"]
    write = exchange.web.threads.waits.run
    async for chunk in exchange.chunks():
        await write(service.commands.write, id_, process, chunk)
    await write(service.commands.write, id_, process, b"", eof=query["eof"])
    await exchange.answer(Answer(204))


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/sandboxes/{id}/exec",
        scope="run",
        help="run a command to its end, or with wait: false start it",
        call=_exec,
        body=ExecBody,
        answer=ResultView,
        also={201: ProcessView},
        waits=True,
        once=True,
    ),
    Operation(
        method="POST",
        path="/v1/run",
        scope="create and run",
        help="a sandbox, one command in it, and its end",
        call=lambda s, a: s.commands.run(a.body),
        body=RunBody,
        answer=ResultView,
        waits=True,
        once=True,
    ),
    Operation(
        method="GET",
        path=_ALL,
        scope="read",
        help="the processes of a sandbox, those that have ended too",
        call=_list,
        query=QUERY,
        answer=list[ProcessView],
    ),
    Operation(
        method="GET",
        path=_ONE,
        scope="read",
        help="a process",
        call=lambda s, a: s.commands.get(a.id, a.process),
        answer=ProcessView,
    ),
    OUTPUT,
    Operation(
        method="POST",
        path=_ONE + "/stdin",
        scope="run",
        help="what it reads next",
        stream=_stdin,
        query=(Parameter("eof", bool, False, help="whether nothing follows"),),
        body="application/octet-stream",
        status=204,
        keyless="leave it out; send all of stdin with exec, which takes a key",
    ),
    Operation(
        method="POST",
        path=_ONE + "/signal",
        scope="run",
        help="signal its group, or all of the sandbox",
        call=_signal,
        body=SignalBody,
        status=204,
        control=True,
        keyless="leave it out; the process tells whether it has ended",
    ),
    Operation(
        method="POST",
        path=_ONE + "/resize",
        scope="run",
        help="change the size of its terminal",
        call=_resize,
        body=Pty,
        status=204,
        control=True,
    ),
)
