"""Requests that wait for somebody to allow them."""

from agentd.ingest.rest.operation import Arguments, Operation
from agentd.ingest.rest.pages import QUERY, page
from agentd.ingest.rest.respond import Reply
from agentd.ingest.service import Service
from agentd.model.api import ApprovalView, DecideBody
from agentd.model.principal import Principal


def _list(service: Service, who: Principal, a: Arguments) -> Reply:
    # What waits comes first.
    return page(service.approvals(who), lambda v: (v.state != "pending", v.id), **a.query)


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
        call=lambda s, who, a: s.approval(who, a.id),
        answer=ApprovalView,
    ),
    Operation(
        method="POST",
        path="/v1/approvals/{id}/decide",
        scope="approve",
        help="allow another's request, or refuse it",
        call=lambda s, who, a: s.decide_approval(who, a.id, a.body),
        body=DecideBody,
        answer=ApprovalView,
    ),
    Operation(
        method="POST",
        path="/v1/approvals/{id}/withdraw",
        scope="read or approve",
        help="withdraw a request of one's own",
        call=lambda s, who, a: s.withdraw_approval(who, a.id),
        answer=ApprovalView,
    ),
)
