"""``agentd serve``: the only place where a daemon is put together.

configuration -> listeners, the daemon's service, the gatekeeper, doors -> one event loop
"""
