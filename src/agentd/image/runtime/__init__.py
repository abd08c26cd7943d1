"""The interpreter that the agent brings: this host's CPython, made relocatable, with the agent."""
