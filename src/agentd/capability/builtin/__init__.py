"""The capabilities that come with agentd, one a file; each has a ``CAPABILITY``."""
