"""What a rule of the configuration finds."""

from agentd.daemon.config.lines import Path

#: Where, what, and its fix.
Found = tuple[Path, str, str]
