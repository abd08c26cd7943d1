"""The folder of a daemon's socket: the same for the daemon that makes it and for its clients.

It is the user's runtime directory where there is one, root's /run; where there is none, as after
su, in cron and in containers, a folder in /tmp that nobody else can use, or in $TMPDIR where /tmp
is read-only.
"""

import os
import stat
from collections.abc import Mapping

_SYSTEM = "/run/agentd"
_MODE = 0o700


def folder(env: Mapping[str, str], uid: int) -> str:
    """Where a daemon of this user listens; ``own`` makes the last resort."""
    if uid == 0:
        return _SYSTEM if _usable("/run") or _usable(_SYSTEM) else _fallback(env, uid)
    found = [base for base in _bases(env, uid) if _usable(base)]
    return os.path.join(found[0], "agentd") if found else _fallback(env, uid)


def folders(env: Mapping[str, str], uid: int) -> list[str]:
    """Where a client of this user looks, in order. One that lies where everybody may write is left
    out unless it is ``uid``'s alone: somebody else's daemon could listen there."""
    found = [os.path.join(base, "agentd") for base in _bases(env, uid)]
    return [*found, *(last for last in fallbacks(env, uid) if is_private(last, uid))]


def fallbacks(env: Mapping[str, str], uid: int) -> list[str]:
    """Those that ``own`` makes, in order: the first that can be made is the daemon's."""
    named = env.get("TMPDIR", "")
    places = ["/tmp", *([os.path.normpath(named)] if os.path.isabs(named) else [])]
    return [f"{place}/agentd-run-{uid}" for place in dict.fromkeys(places)]


def _fallback(env: Mapping[str, str], uid: int) -> str:
    found = fallbacks(env, uid)
    return next((path for path in found if _usable(os.path.dirname(path))), found[0])


def own(path: str, uid: int) -> None:
    """Make the last resort, or see that it is nobody else's. Raises OSError."""
    try:
        os.mkdir(path, _MODE)
    except FileExistsError:
        if not is_private(path, uid):
            raise PermissionError(
                f"{path} is not a folder of uid {uid} alone (mode 0700): remove it"
            ) from None


def is_private(path: str, uid: int) -> bool:
    """Whether it is a folder, no link, that nobody but ``uid`` may enter."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077


def _bases(env: Mapping[str, str], uid: int) -> list[str]:
    named = env.get("XDG_RUNTIME_DIR")
    if uid == 0:
        return [named] if named else []
    return list(dict.fromkeys([*([named] if named else []), f"/run/user/{uid}"]))


def _usable(base: str) -> bool:
    return os.path.isdir(base) and os.access(base, os.W_OK | os.X_OK, effective_ids=True)
