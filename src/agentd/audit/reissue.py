"""Receipts that were lost with the power, made again from the log."""

from agentd.audit.errors import AuditError
from agentd.audit.keypair import KeyPair
from agentd.audit.read import records
from agentd.audit.receipt import facts_of, issue
from agentd.audit.receipts import Receipts
from agentd.model.audit import Kind


def reissue(log_directory: str, receipts: Receipts, key: KeyPair, first: int = 1) -> int:
    """Of executions whose end is record ``first`` or a later one; how many were missing.

    The log is taken at its word: verify it first. Raises AuditError.
    """
    made = 0
    for record in records(log_directory, first):
        if record.kind != Kind.END or receipts.get(record.request) is not None:
            continue
        try:
            facts = facts_of(record)
        except AuditError:  # an end that is told without what a receipt needs
            continue
        receipts.put(record.request, issue(facts, key))
        made += 1
    return made
