"""Whether something may happen, who said so, and the record of how it ended."""
