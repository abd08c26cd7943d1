"""/var and /run: what programs expect to find there, and where a sandbox may write it.

The zygote's root has them, read-only. A sandbox has directories of its scratch tmpfs over both,
with the same in them; what of /var is mounted from the host is there by links. Standard library
only.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

TOPS = ("/run", "/var")
#: What is mounted from the host is here, where no sandbox's /var covers it.
BEHIND = "/.agentd"
_FOLDERS = (
    *("/run", "/run/lock", "/var", "/var/cache", "/var/lib", "/var/local", "/var/log"),
    *("/var/opt", "/var/spool", "/var/tmp"),
)
_OPEN = ("/run/lock", "/var/tmp")
_LINKS = {"/var/lock": "/run/lock", "/var/run": "/run"}
# What packages have made at each boot (tmpfiles.d(5)); nobody else makes it for their programs.
_TMPFILES = "/usr/lib/tmpfiles.d/*.conf"
_MADE = re.compile(
    r"^[dDvqQ][!$=~^+-]*\s+(/(?:run|var/(?:cache|lib|log|spool))/[\w./-]+)\s+[~:]*([0-7]+|-)?"
)
# Whose presence says that systemd runs, and what is root's alone.
_NOT_MADE = re.compile(r"^/run/(systemd|user|log)\b|^/var/lib/systemd\b|/private$")
_MAX_MADE = 48
_MAX_DEPTH = 4


class Contents(NamedTuple):
    """``folders`` are paths and modes, each behind the one that it is in; ``links`` paths and
    targets."""

    folders: tuple[tuple[str, int], ...]
    links: tuple[tuple[str, str], ...]


def place(path: str) -> str:
    """Return where a directory of the host's is mounted; in /var it is a link to that."""
    return BEHIND + path if path.startswith("/var/") else path


def make(stage: str, trees: Sequence[str]) -> None:
    """Makes the zygote's own, below ``stage``; ``trees`` are of the host's /var."""
    lines = _lines(sorted(glob.glob(_TMPFILES)))
    made = made_at_boot(lines)
    made = {path: is_open for path, is_open in made.items() if not _meet(path, trees)}
    for path in (*_FOLDERS, *made, *map(os.path.dirname, trees)):
        os.makedirs(stage + path, 0o755, exist_ok=True)
    for path in trees:
        os.symlink(place(path), stage + path)
    for path in (*_OPEN, *(path for path, is_open in made.items() if is_open)):
        os.chmod(stage + path, 0o1777)  # noqa: S103  (as it is on every system)
    for path, target in _LINKS.items():
        os.symlink(target, stage + path)


def _meet(path: str, trees: Sequence[str]) -> bool:
    """Return whether one of the trees lies in ``path``, or around it."""
    ends = [(f"{path}/", f"{tree}/") for tree in trees]
    return any(one.startswith(other) or other.startswith(one) for one, other in ends)


def made_at_boot(lines: Iterable[str]) -> dict[str, bool]:
    """Return directories that lines of tmpfiles.d ask for in /run and /var, and whether everybody
    may write there."""
    found: dict[str, bool] = {}
    for line in lines:
        match = _MADE.match(line)
        if match is None or len(found) == _MAX_MADE:
            continue
        path, mode = match.groups()
        plain = os.path.normpath(path) == path and path.count("/") <= _MAX_DEPTH
        if plain and not _NOT_MADE.search(path):
            found[path] = mode is not None and mode != "-" and bool(int(mode, 8) & 0o002)
    return found


def _lines(paths: list[str]) -> Iterator[str]:
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                yield from file.read(1 << 16).splitlines()
        except OSError:
            continue


@cache
def contents(below: str = "") -> Contents:
    """Tells what a sandbox has there, as the zygote's root has it, or one that is made
    ``below``."""
    folders: list[tuple[str, int]] = []
    links: list[tuple[str, str]] = []

    def look(folder: str) -> None:
        for entry in sorted(os.scandir(folder), key=lambda found: found.name):
            if entry.is_symlink():
                links.append((entry.path.removeprefix(below), os.readlink(entry.path)))
            elif entry.is_dir():
                is_open = entry.stat(follow_symlinks=False).st_mode & 0o002
                folders.append((entry.path.removeprefix(below), 0o1777 if is_open else 0o755))
                look(entry.path)

    for top in TOPS:
        look(below + top)
    return Contents(tuple(folders), tuple(links))
