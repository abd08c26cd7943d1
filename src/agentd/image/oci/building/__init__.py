"""Images built of a Dockerfile: read, run step by step in sandboxes, cached by digest."""
