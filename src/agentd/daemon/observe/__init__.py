"""What the daemon tells of itself: its log, metrics and traces."""
