"""Commands: run to their end, or started, fed and signalled."""

from typing import Any

from agentd.ingest.rest.api import Exchange, Reply
from agentd.ingest.rest.operation import Arguments, OperationTable, Parameter
from agentd.ingest.rest.output import OUTPUT
from agentd.ingest.rest.pages import QUERY, page
from agentd.model import api
from agentd.model.answer import Answer
from agentd.model.api import ProcessView, ResultView
from agentd.model.service import Service
from agentd.model.spec import Pty

OPERATIONS = OperationTable()
_SANDBOX = "/v1/sandboxes/{id}"
_ALL = _SANDBOX + "/processes"
_ONE = _ALL + "/{proc}"
_FED_ONCE = "leave it out; send all of stdin with exec, which takes a key"
_TOLD = "leave it out; the process tells whether it has ended"


@OPERATIONS.row(
    "POST",
    _SANDBOX + "/exec",
    "run",
    body=api.ExecBody,
    answer=ResultView,
    also={201: ProcessView},
    waits=True,
    is_large=True,
    once=True,
)
def _exec(service: Service, a: Arguments) -> object:
    """Run a command to its end, or with wait: false start it."""
    if a.body.wait:
        return service.commands.exec(a.id, a.body)
    return Reply(201, service.commands.start(a.id, a.body))


@OPERATIONS.row(
    "POST", "/v1/run", "create and run", body=api.RunBody, waits=True, is_large=True, once=True
)
def _run(service: Service, a: Arguments) -> ResultView:
    """Run one command in a sandbox made for it, and end that."""
    return service.commands.run(a.body)


@OPERATIONS.row("GET", _ALL, "read", query=QUERY, answer=list[ProcessView])
def _list(service: Service, a: Arguments) -> Reply:
    """List the processes of a sandbox, those that have ended too."""
    return page(service.commands.list(a.id), lambda p: (p.started, p.id), **a.query)


@OPERATIONS.row("GET", _ONE, "read")
def _get(service: Service, a: Arguments) -> ProcessView:
    """Show a process."""
    return service.commands.get(a.id, a.process)


OPERATIONS += OUTPUT


@OPERATIONS.row(
    "POST",
    _ONE + "/stdin",
    "run",
    query=(Parameter("eof", bool, False, help="whether nothing follows"),),
    body="application/octet-stream",
    status=204,
    keyless=_FED_ONCE,
)
async def _stdin(exchange: Exchange, query: dict[str, Any]) -> None:
    """Write what it reads next.

    Piece by piece: what the process does not read, the client does not get rid of.
    """
    service = await exchange.authenticate()
    id_, process = exchange.path["id"], exchange.path["proc"]
    write = exchange.web.threads.waits.run
    async for chunk in exchange.chunks():
        await write(service.commands.write, id_, process, chunk)
    await write(service.commands.write, id_, process, b"", eof=query["eof"])
    await exchange.answer(Answer(204))


@OPERATIONS.row("POST", _ONE + "/signal", "run", body=api.SignalBody, control=True, keyless=_TOLD)
def _signal(service: Service, a: Arguments) -> None:
    """Signal its group, or all of the sandbox."""
    service.commands.signal(a.id, a.process, a.body.signal, a.body.target)


@OPERATIONS.row("POST", _ONE + "/resize", "run", body=Pty, control=True)
def _resize(service: Service, a: Arguments) -> None:
    """Change the size of its terminal."""
    service.commands.resize(a.id, a.process, a.body.rows, a.body.cols)
