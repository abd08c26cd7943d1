"""Where agentd keeps what it can make again."""

import os


def folder(name: str) -> str:
    """Root's is not in its home, which the unprivileged user that monitors run as cannot enter."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        cache = "/var/cache" if os.geteuid() == 0 else os.path.expanduser("~/.cache")
    return os.path.join(cache, "agentd", name)
