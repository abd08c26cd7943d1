"""Requests that wait for somebody to allow them."""

from agentd.ingest.rest.api import Reply
from agentd.ingest.rest.operation import Arguments, OperationTable
from agentd.ingest.rest.pages import QUERY, place_of, reply
from agentd.model.api import ApprovalView, DecideBody
from agentd.model.door import DoorService
from agentd.model.service import Service

OPERATIONS = OperationTable()
_ALL = "/v1/approvals"
_ONE = _ALL + "/{id}"
_EITHER = "read or approve"


@OPERATIONS.row("GET", _ALL, _EITHER, query=QUERY, answer=list[ApprovalView])
def _list(service: DoorService, a: Arguments) -> Reply:
    """List what waits, and what was decided lately; one's own without the scope approve."""
    limit: int = a.query["limit"]
    return reply(*service.approvals.page(limit, place_of(limit, a.query["cursor"])))


@OPERATIONS.row("GET", _ONE, _EITHER)
def _get(service: Service, a: Arguments) -> ApprovalView:
    """Show one of them."""
    return service.approvals.get(a.id)


@OPERATIONS.row("POST", _ONE + "/decide", "approve", body=DecideBody)
def _decide(service: Service, a: Arguments) -> ApprovalView:
    """Allow another's request, or refuse it."""
    return service.approvals.decide(a.id, allow=a.body.allow, note=a.body.note)


@OPERATIONS.row("POST", _ONE + "/withdraw", _EITHER)
def _withdraw(service: Service, a: Arguments) -> ApprovalView:
    """Withdraw a request of one's own."""
    return service.approvals.withdraw(a.id)
