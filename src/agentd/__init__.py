"""agentd: run untrusted commands behind a wall you choose, and learn truthfully what it was.

Nothing is imported here, so that ``agentd.guest`` stands alone and ``agentd --version`` is fast;
the public names load on first use.
"""

_PUBLIC = {
    "AsyncSandbox": "agentd.client.aio",
    "ExecLimits": "agentd.model.spec",
    "Sandbox": "agentd.client.sandbox",
}

__all__ = ["AsyncSandbox", "ExecLimits", "Sandbox"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from agentd._version import __version__

        return __version__
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'agentd' has no attribute {name!r}")
