"""API keys."""

from agentd.ingest.rest.api import Reply
from agentd.ingest.rest.operation import Arguments, OperationTable
from agentd.ingest.rest.pages import QUERY, page
from agentd.model.api import KeyBody, KeyView
from agentd.model.service import Service

OPERATIONS = OperationTable()
_ALL = "/v1/keys"
_ONE = _ALL + "/{id}"
_TOLD_ONCE = (
    "leave it out: a secret is not kept, so no repeat can have it; revoke the key that nobody got"
)


@OPERATIONS.row("POST", _ALL, "keys", body=KeyBody, status=201, keyless=_TOLD_ONCE)
def _create(service: Service, a: Arguments) -> KeyView:
    """Make a key; its secret is in this answer and nowhere else."""
    body: KeyBody = a.body
    return service.keys.create(body.name, body.scopes, ttl=body.ttl, principal=body.principal)


@OPERATIONS.row("GET", _ALL, "keys", query=QUERY, answer=list[KeyView])
def _list(service: Service, a: Arguments) -> Reply:
    """List one's keys, the oldest first."""
    return page(service.keys.list(), lambda k: (k.created, k.id), **a.query)


@OPERATIONS.row("GET", _ONE, "keys")
def _get(service: Service, a: Arguments) -> KeyView:
    """Show a key."""
    return service.keys.get(a.id)


@OPERATIONS.row("DELETE", _ONE, "keys")
def _revoke(service: Service, a: Arguments) -> None:
    """Revoke a key."""
    service.keys.revoke(a.id)
