"""Sandboxes: their manager, lifecycle and backends."""
