"""The audit log: its head, to be kept elsewhere, and its records."""

import msgspec

from agentd.ingest.rest.operation import Operation
from agentd.ingest.rest.query import Parameter
from agentd.model.api import AuditHead, AuditPage
from agentd.model.audit import Record

# For the document alone: an AuditPage has its records as the lines that they are.
_SHOWN = msgspec.defstruct(
    AuditPage.__name__,
    [("records", tuple[Record, ...]), ("next", int | None, None)],
    namespace={"__doc__": AuditPage.__doc__},
)

OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/audit/head",
        scope="admin",
        help="the last record's place in the audit log",
        call=lambda s, a: s.audit.head(),
        answer=AuditHead,
    ),
    Operation(
        method="GET",
        path="/v1/audit/records",
        scope="admin",
        help="records of the audit log as they stand in it",
        call=lambda s, a: s.audit.records(a.query["from"], a.query["limit"]),
        query=(
            Parameter("from", int, 1, help="the number of the first"),
            Parameter("limit", int, 1000, help="how many at most, up to 1000"),
        ),
        answer=_SHOWN,
    ),
)
