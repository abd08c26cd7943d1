"""The two programs: where they are, which release they are, and whether root may run them."""

import os
import shutil
import stat
from typing import NamedTuple

from agentd.linux import programs
from agentd.model.availability import Blocker
from agentd.model.errors import Refused
from agentd.sandbox.backends.firecracker.version import Version, parse, quirks

_SECONDS = 5.0
_GET = (
    "put firecracker and jailer of one release from "
    "https://github.com/firecracker-microvm/firecracker/releases on PATH, owned by root"
)


class Programs(NamedTuple):
    firecracker: str
    jailer: str


def find(path: str | None = None) -> Programs:
    """Empty where one is not on PATH."""
    return Programs(*(shutil.which(name, path=path) or "" for name in Programs._fields))


def examine(programs: Programs) -> tuple[Version | None, list[Blocker]]:
    """Returns their release, and what keeps them from being used."""
    blockers = [
        Blocker(f"{name} is not installed", _GET)
        for name, where in programs._asdict().items()
        if not where
    ]
    if blockers:
        return None, blockers
    blockers = [found for where in programs if (found := _writable(where)) is not None]
    try:
        versions = [_version(where) for where in programs]
        quirks(versions[0])
    except Refused as error:
        what = f"{error.message}: {error.cause}" if error.cause else error.message
        return None, [*blockers, Blocker(what, error.remediation)]
    if versions[0] != versions[1]:
        what = f"firecracker is {versions[0]} and jailer {versions[1]}"
        blockers.append(Blocker(what, _GET))
    return versions[0], blockers


def _version(where: str) -> Version:
    """Read a program's version in what it prints first. Raises Refused."""
    try:
        said = programs.ask([where, "--version"], _SECONDS, env={"PATH": "/usr/bin:/bin"})
    except OSError as error:
        raise Refused(f"{where} cannot be run", cause=str(error), remediation=_GET) from error
    return parse(said.out.partition("\n")[0])


def _writable(where: str) -> Blocker | None:
    """The jailer runs as root: nobody else may have a say in what it is."""
    status = os.stat(where)
    if status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    return Blocker(
        f"{where} can be changed by others than root", f"chown root {where}; chmod 755 {where}"
    )
