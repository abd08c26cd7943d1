"""The folder of a daemon's socket: the same for the daemon that makes it and for its clients.

It is the user's runtime directory where there is one, root's /run; where there is none, as after
su, in cron and in containers, a folder in /tmp that nobody else can use, or in $TMPDIR where /tmp
is read-only. What the environment names and another user could change, as after su, which keeps
the other's XDG_RUNTIME_DIR, is passed over by both: that one's daemon could listen there.
"""

import os
import stat
from collections.abc import Mapping

_SYSTEM = "/run/agentd"
_MODE = 0o700


def folder(env: Mapping[str, str], uid: int) -> str:
    """Return where a daemon of this user listens; ``own`` makes the last resort."""
    if uid == 0:
        return _SYSTEM if _usable("/run") or _usable(_SYSTEM) else _fallback(env, uid)
    found = [base for base in _bases(env, uid) if _usable(base) and _may_hold(base, uid)]
    return os.path.join(found[0], "agentd") if found else _fallback(env, uid)


def folders(env: Mapping[str, str], uid: int) -> list[str]:
    """Return where a client of this user looks, in order. One that another could have made is left
    out: that one's daemon could listen there, and would get what the client sends."""
    found = [os.path.join(base, "agentd") for base in _bases(env, uid) if _may_hold(base, uid)]
    return [*found, *(last for last in fallbacks(env, uid) if is_private(last, uid))]


def fallbacks(env: Mapping[str, str], uid: int) -> list[str]:
    """Returns those that ``own`` makes, in order: the first that can be made is the daemon's."""
    named = env.get("TMPDIR", "")
    is_ours = os.path.isabs(named) and is_trusted(named, uid)
    places = ["/tmp", *([os.path.normpath(named)] if is_ours else [])]
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
    """Return whether it is a folder, no link, that nobody but ``uid`` may enter."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077


def is_trusted(base: str, uid: int) -> bool:
    """Return whether nobody but ``uid`` and root can put something else in the place of what those
    have in that folder."""
    found = _look(base, follow=True)
    return found is not None and found.st_uid in (0, uid) and (_closed(found) or _sticky(found))


def _may_hold(base: str, uid: int) -> bool:
    """Return whether ``base/agentd`` is this user's or root's, or nobody else can make it."""
    top, found = _look(base, follow=True), _look(os.path.join(base, "agentd"))
    if found is None:
        return top is not None and top.st_uid in (0, uid) and _closed(top)
    is_ours = found.st_uid in (0, uid) and _closed(found) and stat.S_ISDIR(found.st_mode)
    return is_ours and is_trusted(base, uid)


def _look(path: str, *, follow: bool = False) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=follow)
    except OSError:
        return None


def _closed(found: os.stat_result) -> bool:
    return not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _sticky(found: os.stat_result) -> bool:
    return bool(found.st_mode & stat.S_ISVTX)


def _bases(env: Mapping[str, str], uid: int) -> list[str]:
    named = env.get("XDG_RUNTIME_DIR")
    if uid == 0:
        return [named] if named else []
    return list(dict.fromkeys([*([named] if named else []), f"/run/user/{uid}"]))


def _usable(base: str) -> bool:
    return os.path.isdir(base) and os.access(base, os.W_OK | os.X_OK, effective_ids=True)
