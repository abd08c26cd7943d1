"""Subordinate ids (subuid(5)): users and groups that an ordinary user may map in its namespaces.

They are the administrator's to give, and newuidmap(1) and newgidmap(1), which are set-id, write the
maps: they read /etc/subuid or what stands for it in /etc/nsswitch.conf. Standard library only.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

FILES = ("/etc/subuid", "/etc/subgid")
PROGRAMS = ("newuidmap", "newgidmap")
# Where these are, whatever our own PATH is.
_FOLDERS = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
_LISTED = re.compile(r"\d+: \S+ (\d+) (\d+)")  # a line of getsubids(1)
_MOST_BYTES = 1 << 20
_SECONDS = 10.0

#: Of a map (user_namespaces(7)): the first id inside, the first id outside, how many.
Line = tuple[int, int, int]


class Subids(NamedTuple):
    """The longest range of each that this process's user was given."""

    uids: range
    gids: range


class Given(NamedTuple):
    """A line of subuid(5) or subgid(5): ``who``, a login name or a uid, has ``ids``."""

    who: str
    ids: range


def given(path: str) -> Iterator[Given]:
    """Reads a file's lines: none where it cannot be read; what is no line is passed over."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(_MOST_BYTES).splitlines()
    except OSError:
        return
    for line in lines:
        who, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if first.isdecimal() and count.isdecimal():
            yield Given(who, range(int(first), int(first) + int(count)))


def own(least: int = 1) -> Subids | str:
    """Finds what this process's user may map, or why that is not ``least`` users and groups, with
    the fix."""
    import pwd  # late, as subprocess is: whoever asks whose a range is needs neither

    missing = [name for name in PROGRAMS if _program(name) is None]
    if missing:
        return f"{missing[0]} is not installed: apt install uidmap, or the package shadow-utils"
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid} has no name, by which subordinate ids are given: add it to /etc/passwd"
    found = [_longest(path, name, uid) for path in FILES]
    for path, ids in zip(FILES, found, strict=True):
        if len(ids) < least:
            what = f"only {len(ids)} ids" if ids else "no ids"
            return (
                f"{path} gives {name} {what}: as root, "
                f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
            )
    return Subids(*found)


def map_ids(pid: int, uids: Sequence[Line], gids: Sequence[Line]) -> None:
    """Write the maps of a user namespace that a process of this user made, and is in.

    Each line is our own id, alone, or of what ``own`` says. The caller is outside of the namespace,
    and not under no_new_privs. Raises OSError with the program's words.
    """
    for name, lines in ((PROGRAMS[1], gids), (PROGRAMS[0], uids)):
        program = _program(name)
        if program is None:
            raise FileNotFoundError(f"{name} is not installed")
        code, _, said = _run(program, str(pid), *(str(number) for line in lines for number in line))
        if code:
            said = said.strip().removeprefix(f"{name}: ")
            raise PermissionError(f"{name} refuses the map: {said or code}")


def _longest(path: str, name: str, uid: int) -> range:
    ranges = [line.ids for line in given(path) if line.who in (name, str(uid))]
    ranges += _listed(path, name) if not ranges else []
    return max(ranges, key=len, default=range(0))


def _listed(path: str, name: str) -> list[range]:
    """Those of a directory service, which shadow's own program asks; it may not be there."""
    program = _program("getsubids")
    if program is None:
        return []
    try:
        _, text, _ = _run(program, *(["-g"] if path == FILES[1] else []), name)
    except OSError:
        return []
    pairs = [(int(first), int(count)) for first, count in _LISTED.findall(text)]
    return [range(first, first + count) for first, count in pairs]


def _program(name: str) -> str | None:
    paths = (f"{folder}/{name}" for folder in _FOLDERS)
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def _run(*argv: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a program of the system's."""
    from agentd.linux import programs  # late: few need it

    said = programs.ask(argv, _SECONDS, env={"LANG": "C.UTF-8"})
    return said.code, said.out[:_MOST_BYTES], said.err
