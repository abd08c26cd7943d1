"""Receipts that were lost with the daemon, or with the power, made again from the log.

The log is taken at its word: verify it first where others may have written to it.
"""

from agentd.audit.errors import AuditError
from agentd.audit.keypair import KeyPair
from agentd.audit.read import records, tail
from agentd.audit.receipt import facts_of, issue
from agentd.audit.receipts import Receipts
from agentd.audit.record import decode
from agentd.model.audit import Kind, Record

# How far back a loss of the newest is looked for, and how many must be there to look no further.
_RECORDS = 8192
_ENOUGH = 256


def reissue(log_directory: str, receipts: Receipts, key: KeyPair, first: int = 1) -> int:
    """Of executions whose end is record ``first`` or a later one; how many were missing.

    Raises AuditError.
    """
    return sum(_made_again(record, receipts, key) for record in records(log_directory, first))


def reissue_newest(log_directory: str, receipts: Receipts, key: KeyPair) -> int:
    """What a daemon that was killed had not issued yet; how many. Raises AuditError."""
    made = there = 0
    for line in reversed(tail(log_directory, _RECORDS)):
        if b'"kind":"end"' not in line:
            continue
        if _made_again(decode(line), receipts, key):
            made, there = made + 1, 0
        else:
            there += 1
        if there == _ENOUGH:
            break
    return made


def _made_again(record: Record, receipts: Receipts, key: KeyPair) -> bool:
    if record.kind != Kind.END or receipts.get(record.request) is not None:
        return False
    try:
        facts = facts_of(record)
    except AuditError:  # an end that is told without what a receipt needs
        return False
    receipts.put(record.request, issue(facts, key))
    return True
