"""Requests that wait for somebody to allow them."""

from agentd.ingest.rest.operation import Arguments, Operation
from agentd.ingest.rest.pages import QUERY, page
from agentd.ingest.rest.respond import Reply
from agentd.model.api import ApprovalView, DecideBody
from agentd.model.service import Service


def _list(service: Service, a: Arguments) -> Reply:
    # What waits comes first.
    return page(service.approvals.list(), lambda v: (v.state != "pending", v.id), **a.query)


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/approvals",
        scope="read or approve",
        help="what waits, and what was decided lately; one's own without the scope approve",
        call=_list,
        query=QUERY,
        answer=list[ApprovalView],
    ),
    Operation(
        method="GET",
        path="/v1/approvals/{id}",
        scope="read or approve",
        help="one of them",
        call=lambda s, a: s.approvals.get(a.id),
        answer=ApprovalView,
    ),
    Operation(
        method="POST",
        path="/v1/approvals/{id}/decide",
        scope="approve",
        help="allow another's request, or refuse it",
        call=lambda s, a: s.approvals.decide(a.id, allow=a.body.allow, note=a.body.note),
        body=DecideBody,
        answer=ApprovalView,
    ),
    Operation(
        method="POST",
        path="/v1/approvals/{id}/withdraw",
        scope="read or approve",
        help="withdraw a request of one's own",
        call=lambda s, a: s.approvals.withdraw(a.id),
        answer=ApprovalView,
    ),
)
