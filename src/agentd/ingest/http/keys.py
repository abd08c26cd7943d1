"""API keys."""

from agentd.ingest.http.operation import Operation
from agentd.model.api import KeyBody, KeyView

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
    ),
    Operation(
        method="GET",
        path="/v1/keys",
        scope="keys",
        help="one's keys",
        call=lambda s, who, a: s.keys(who),
        answer=list[KeyView],
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
