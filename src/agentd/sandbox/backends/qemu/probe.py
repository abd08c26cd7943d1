"""Which QEMU is here, whether it will do, and whether KVM can carry it."""

import os
import re
import shutil
from functools import cache
from typing import NamedTuple

from agentd.linux import abi, kvm, programs
from agentd.model.availability import Blocker
from agentd.sandbox.backends.qemu.plan import PROGRAM

MIN_VERSION = (9, 0)  # states with a place for each page: mapped-ram
_VERSION = re.compile(r"QEMU emulator version ((\d+)\.(\d+)\.\d+)")
_ANSWER_SECONDS = 20.0
_FIX = "apt-get install qemu-system-x86"
_BACKPORTS = "apt-get install -t bookworm-backports qemu-system-x86"


class Monitor(NamedTuple):
    path: str
    version: str
    accel: str
    detail: str  # why not kvm

    @property
    def key(self) -> str:
        """Changes with the program."""
        status = os.stat(self.path)
        return f"{self.version}-{status.st_size}-{status.st_mtime_ns}"


def find() -> Monitor | Blocker:
    """Looked up once a process; a program that is installed meanwhile is found."""
    path = shutil.which(PROGRAM)
    if abi.MACHINE != "x86_64":
        return Blocker(f"this machine is {abi.MACHINE}, the guest x86_64", "use an x86_64 machine")
    if path is None:
        return Blocker(f"{PROGRAM} is not installed", _FIX)
    version = _said(os.path.realpath(path), "--version")
    match = _VERSION.match(version)
    if match is None:
        return Blocker(f"{path} does not say its version: {version[:100]!r}", _FIX)
    if (int(match[2]), int(match[3])) < MIN_VERSION:
        wanted = ".".join(map(str, MIN_VERSION))
        fix = f"install QEMU {wanted} or newer (on Debian 12: {_BACKPORTS})"
        return Blocker(f"{path} is version {match[1]}", fix)
    usable, why = _kvm()
    if usable and "kvm" not in _said(os.path.realpath(path), "-accel", "help").split():
        usable, why = False, f"{path} was built without KVM"
    return Monitor(os.path.realpath(path), match[1], "kvm" if usable else "tcg", why)


def examine() -> tuple[list[Blocker], list[str]]:
    """Blockers, and notes that say which acceleration there is."""
    found = find()
    if isinstance(found, Blocker):
        return [found], []
    if found.accel == "kvm":
        return [], [f"QEMU {found.version}, accel=kvm"]
    return [], [f"QEMU {found.version}, accel=tcg (software emulation): {found.detail}"]


@cache
def _said(path: str, *words: str) -> str:
    try:
        said = programs.ask([path, *words], _ANSWER_SECONDS)
    except OSError as error:
        return str(error)
    return said.out or said.err


@cache
def _kvm() -> tuple[bool, str]:
    """The monitor uses the device by a descriptor that we open, as the probe does."""
    found = kvm.probe()
    return found.usable, found.what
