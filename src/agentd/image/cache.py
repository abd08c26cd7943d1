"""Where agentd keeps what it can make again."""

import contextlib
import os

#: Of folders, whatever the umask: monitors and sandboxes have other users.
OPEN = 0o755


def folder(name: str) -> str:
    """Root's is not in its home, which the unprivileged user that monitors run as cannot enter."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        cache = "/var/cache" if os.geteuid() == 0 else os.path.expanduser("~/.cache")
    return os.path.join(cache, "agentd", name)


def make_folders(path: str) -> None:
    """Make it, and those above it that are not there."""
    if os.path.isdir(path):
        return
    make_folders(os.path.dirname(path))
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
        os.chmod(path, OPEN)
