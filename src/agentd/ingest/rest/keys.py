"""API keys."""

from agentd.ingest.rest.operation import Arguments, Operation
from agentd.ingest.rest.pages import QUERY, page
from agentd.ingest.rest.respond import Reply
from agentd.ingest.service import Service
from agentd.model.api import KeyBody, KeyView
from agentd.model.principal import Principal


def _list(service: Service, who: Principal, a: Arguments) -> Reply:
    return page(service.keys(who), lambda k: (k.created, k.id), **a.query)


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/keys",
        scope="keys",
        help="make a key; its secret is in this answer and nowhere else",
        call=lambda s, who, a: s.create_key(who, a.body),
        body=KeyBody,
        answer=KeyView,
        status=201,
        keyless="leave it out: a secret is not kept, so no repeat can have it; revoke the key that "
        "nobody got",
    ),
    Operation(
        method="GET",
        path="/v1/keys",
        scope="keys",
        help="one's keys, the oldest first",
        call=_list,
        query=QUERY,
        answer=list[KeyView],
    ),
    Operation(
        method="GET",
        path="/v1/keys/{id}",
        scope="keys",
        help="a key",
        call=lambda s, who, a: s.key(who, a.id),
        answer=KeyView,
    ),
    Operation(
        method="DELETE",
        path="/v1/keys/{id}",
        scope="keys",
        help="revoke a key",
        call=lambda s, who, a: s.revoke_key(who, a.id),
        status=204,
    ),
)
