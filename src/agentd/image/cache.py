"""Where agentd keeps what it can make again."""

import contextlib
import os

#: Of folders, whatever the umask: monitors and sandboxes have other users.
OPEN = 0o755


def folder(name: str) -> str:
    """Return the folder of caches: root's not in its home, where no unprivileged monitor can go."""
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


def own_folder(name: str = "") -> str | None:
    """Make a folder of the user's own cache, or that itself, and return its path; None where it is
    no place of our own: under sudo the home may be another's, who could swap what lies in it."""
    above = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    ours = os.path.join(above, "agentd")
    path = os.path.join(ours, name) if name else ours
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        owners = {os.lstat(each).st_uid for each in (path, ours, above)}
    except OSError:
        return None
    return path if owners == {os.geteuid()} else None
