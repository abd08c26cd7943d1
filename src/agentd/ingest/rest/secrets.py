"""Secrets that the daemon keeps: set, listed and removed, never read back."""

from agentd.ingest.rest.api import Reply
from agentd.ingest.rest.operation import Arguments, OperationTable
from agentd.ingest.rest.pages import QUERY, page
from agentd.model.kept_secret import SecretBody, SecretView
from agentd.model.service import Service

OPERATIONS = OperationTable()
_ALL = "/v1/secrets"
_ONE = _ALL + "/{name}"


@OPERATIONS.row("GET", _ALL, "secrets", query=QUERY, answer=list[SecretView])
def _list(service: Service, a: Arguments) -> Reply:
    """List one's secrets, the oldest first, without their values."""
    return page(service.secrets.list(), lambda view: (view.created, view.name), **a.query)


@OPERATIONS.row("PUT", _ONE, "secrets", body=SecretBody)
def _set(service: Service, a: Arguments) -> SecretView:
    """Keep a secret, in place of one of that name."""
    return service.secrets.set(a.path["name"], a.body.value)


@OPERATIONS.row("DELETE", _ONE, "secrets")
def _delete(service: Service, a: Arguments) -> None:
    """Forget a secret; sandboxes that use it go on with it."""
    service.secrets.delete(a.path["name"])
