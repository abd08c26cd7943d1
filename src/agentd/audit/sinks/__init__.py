"""Where records go besides the log itself."""
