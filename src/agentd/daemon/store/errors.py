"""What can go wrong with the store."""

from agentd.model.errors import AgentdError


class StoreError(AgentdError):
    """The store cannot be opened, read or written; a write that raises this left nothing behind."""

    code = "store_error"


class StoreLocked(StoreError):
    """Another daemon has it open."""

    code = "store_locked"


class StoreBusy(StoreError):
    """Too many writes wait already; this one was not begun."""

    code = "store_busy"
