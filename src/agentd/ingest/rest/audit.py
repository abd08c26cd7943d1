"""The audit log: its head, to be kept elsewhere, and its records."""

import msgspec

from agentd.ingest.rest.operation import Arguments, OperationTable, Parameter
from agentd.model.api import AuditHead, AuditPage
from agentd.model.audit import Record
from agentd.model.service import Service

OPERATIONS = OperationTable()
_QUERY = (
    Parameter("from", int, 1, help="the number of the first"),
    Parameter("limit", int, 1000, help="how many at most, up to 1000"),
)
# For the document alone: an AuditPage has its records as the lines that they are.
_SHOWN = msgspec.defstruct(
    AuditPage.__name__,
    [("records", tuple[Record, ...]), ("next", int | None, None)],
    namespace={"__doc__": AuditPage.__doc__},
)


@OPERATIONS.row("GET", "/v1/audit/head", "admin")
def _head(service: Service, a: Arguments) -> AuditHead:
    """Tell the last record's place in the audit log."""
    return service.audit.head()


@OPERATIONS.row("GET", "/v1/audit/records", "admin", query=_QUERY, answer=_SHOWN)
def _records(service: Service, a: Arguments) -> AuditPage:
    """Show records of the audit log as they stand in it."""
    return service.audit.records(a.query["from"], a.query["limit"])
