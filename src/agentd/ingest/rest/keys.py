"""API keys."""

from agentd.ingest.rest.operation import Arguments, Operation
from agentd.ingest.rest.pages import QUERY, page
from agentd.ingest.rest.respond import Reply
from agentd.model.api import KeyBody, KeyView
from agentd.model.service import Service


def _create(service: Service, a: Arguments) -> KeyView:
    body: KeyBody = a.body
    return service.keys.create(body.name, body.scopes, ttl=body.ttl, principal=body.principal)


def _list(service: Service, a: Arguments) -> Reply:
    return page(service.keys.list(), lambda k: (k.created, k.id), **a.query)


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/keys",
        scope="keys",
        help="make a key; its secret is in this answer and nowhere else",
        call=_create,
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
        call=lambda s, a: s.keys.get(a.id),
        answer=KeyView,
    ),
    Operation(
        method="DELETE",
        path="/v1/keys/{id}",
        scope="keys",
        help="revoke a key",
        call=lambda s, a: s.keys.revoke(a.id),
        status=204,
    ),
)
