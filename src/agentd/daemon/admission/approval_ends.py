"""How an approval is decided on, and what is told of one that has ended."""

import msgspec

from agentd.daemon.admission.approval_pages import PENDING
from agentd.daemon.store.records import ApprovalRecord
from agentd.model.api import ApprovalView
from agentd.model.errors import Conflict


def decided(record: ApprovalRecord, by: str, allow: bool, note: str, now: float) -> ApprovalRecord:
    """Return it decided. Raises Conflict where it has ended."""
    if record.state != PENDING:
        raise has_ended(record)
    return msgspec.structs.replace(
        record, state="approved" if allow else "denied", decided=now, decided_by=by, note=note
    )


def has_ended(one: ApprovalRecord | ApprovalView, state: str = "") -> Conflict:
    """Make the refusal to decide on one that has ended; ``state``: where the record is behind."""
    ended = state or one.state
    fix = f"its request {'went on with that' if ended == 'approved' else 'must be sent again'}"
    return Conflict(f"approval {one.id} is {ended}", cause=one.note, remediation=fix)
