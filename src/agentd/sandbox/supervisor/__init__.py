"""A process that holds the sandboxes of a daemon and outlives it; docs/architecture.md."""
