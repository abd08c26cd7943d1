"""Receipts that were lost with the daemon, or with the power, made again from the log.

The log is taken at its word: verify it first where others may have written to it.
"""

from agentd.audit.errors import AuditError
from agentd.audit.keypair import KeyPair
from agentd.audit.read import records, tail
from agentd.audit.receipt import facts_of, issue
from agentd.audit.receipts import ReceiptStore
from agentd.audit.record import decode
from agentd.model.audit import Kind, Record

# How many records are looked at for what was lost of the newest, at first and where that was not
# enough; and how many receipts in a row must be there to look no further.
_RECORDS = (1024, 8192)
_ENOUGH = 128


def reissue(log_directory: str, receipts: ReceiptStore, key: KeyPair, first: int = 1) -> int:
    """Of executions whose end is record ``first`` or a later one; how many were missing.

    Raises AuditError.
    """
    return sum(_made_again(record, receipts, key) for record in records(log_directory, first))


def reissue_newest(log_directory: str, receipts: ReceiptStore, key: KeyPair) -> int:
    """Issue what a daemon that was killed had not issued; return how many. Raises AuditError."""
    made = 0
    for count in _RECORDS:
        there = 0  # in a row
        for line in reversed(tail(log_directory, count)):
            if b'"kind":"end"' not in line:
                continue
            again = _made_again(decode(line), receipts, key)
            made, there = made + again, 0 if again else there + 1
            if there == _ENOUGH:
                return made
    return made


def _made_again(record: Record, receipts: ReceiptStore, key: KeyPair) -> bool:
    if record.kind != Kind.END or receipts.get(record.request) is not None:
        return False
    try:
        facts = facts_of(record)
    except AuditError:  # an end that is told without what a receipt needs
        return False
    receipts.put(record.request, issue(facts, key))
    return True
