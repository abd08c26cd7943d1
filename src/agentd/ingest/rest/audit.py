"""The audit log: its head, to be kept elsewhere, and its records."""

from agentd.ingest.rest.operation import Operation
from agentd.ingest.rest.query import Parameter
from agentd.model.api import AuditHead, AuditPage

OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/audit/head",
        scope="admin",
        help="the last record's place in the audit log",
        call=lambda s, who, a: s.audit_head(who),
        answer=AuditHead,
    ),
    Operation(
        method="GET",
        path="/v1/audit/records",
        scope="admin",
        help="records of the audit log as they stand in it",
        call=lambda s, who, a: s.audit_records(who, a.query["from"], a.query["limit"]),
        query=(
            Parameter("from", int, 1, help="the number of the first"),
            Parameter("limit", int, 1000, help="how many at most, up to 1000"),
        ),
        answer=AuditPage,
    ),
)
