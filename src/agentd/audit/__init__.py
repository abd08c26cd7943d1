"""What was done, provably: a hash-chained log, signed receipts, and their verification."""
