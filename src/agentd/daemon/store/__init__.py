"""What the daemon must not forget: sandboxes, processes, keys and answers, on disk."""
