"""What sandboxes may reach: rules as tables, and the process that dials by them."""
