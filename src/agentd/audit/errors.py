"""What can go wrong with the audit log and with receipts."""

from agentd.model.errors import AgentdError


class AuditError(AgentdError):
    """The log cannot be opened, read or written; an event that this was raised for is not in it."""

    code = "audit_error"


class NoLog(AuditError):
    """There is no audit log where one was looked for."""


class LogDamaged(AuditError):
    """The log lacks what was written to it; nothing is done until an operator accepts that."""


class AuditLocked(AuditError):
    """Another process writes this log."""

    code = "audit_locked"


class AuditBusy(AuditError):
    """Too many events wait for the disk already; this one was not taken."""

    code = "audit_busy"


class ReceiptInvalid(AgentdError):
    """The receipt is none, was changed, or was signed by another key."""

    code = "receipt_invalid"
