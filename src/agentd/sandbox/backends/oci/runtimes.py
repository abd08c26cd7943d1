"""The OCI runtimes that a wall can be built by: where they are, and how each is called."""

import os
import re
from collections.abc import Iterable, Mapping

import msgspec

from agentd.linux import programs
from agentd.sandbox.backends.oci import bundle

#: Beside what PATH has: an ordinary user's often lacks the last three.
_PLACES = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
_VERSION = re.compile(r"(\d+(?:\.\d+)+\S*)")
_SECONDS = 10.0


class Runtime(msgspec.Struct, frozen=True):
    """``flags`` come before the command, ``passing`` has it hand on descriptor 3, and 4 where there
    is a use for that."""

    name: str
    flags: tuple[str, ...]
    passing: tuple[str, ...]
    #: Distributions and what its package is called there.
    packages: Mapping[str, str]
    #: What it is called on PATH, where that is not its name.
    program: str = ""

    def find(self) -> str | None:
        """Where its program is; None where it is not installed."""
        return find(self.program or self.name)

    def argv(self, program: str, sandbox: str, flags: Iterable[str] = ()) -> list[str]:
        """The command line that starts ``sandbox`` of the builder's bundle, and then ends;
        ``flags`` are that sandbox's own."""
        return [
            program,
            *self.flags,
            *flags,
            *("--root", bundle.STATE, "--log", bundle.LOG),
            "run",
            *self.passing,
            *("--detach", "--pid-file", bundle.PID_FILE, "--bundle", bundle.BUNDLE, sandbox),
        ]

    def install(self) -> str:
        """How it is had, for whoever lacks it."""
        told = ", ".join(f"{how} on {where}" for where, how in self.packages.items())
        return f"install {self.program or self.name}: {told}"


#: The first that is there is taken where none is named. ``--rootless``: it is root of a user
#: namespace alone, and may have no control groups; the sandbox's is made by agentd.
RUNTIMES: dict[str, Runtime] = {
    "runc": Runtime(
        "runc",
        ("--rootless", "true", "--log-format", "text"),
        ("--preserve-fds", "2"),
        {
            "Debian and Ubuntu": "apt install runc",
            "Fedora": "dnf install runc",
            "Arch": "pacman -S runc",
        },
    ),
    "crun": Runtime(
        "crun",
        ("--cgroup-manager", "disabled"),
        ("--preserve-fds", "2"),
        {
            "Debian and Ubuntu": "apt install crun",
            "Fedora": "dnf install crun",
            "Arch": "pacman -S crun",
        },
    ),
}


def absent(wanted: Iterable[Runtime]) -> tuple[str, str]:
    """What is missing, and the fix."""
    named = {runtime.program or runtime.name: runtime.install() for runtime in wanted}
    return f"{' or '.join(named)} is not installed", "; or ".join(named.values())


def find(name: str) -> str | None:
    """Where the program ``name`` is; None where it is not."""
    for folder in (*os.environ.get("PATH", "").split(":"), *_PLACES):
        path = os.path.join(folder, name)
        if folder.startswith("/") and os.path.isfile(path) and os.access(path, os.X_OK):
            return os.path.realpath(path)
    return None


def version(program: str) -> str:
    """What it calls itself; empty where it cannot be run or says nothing."""
    try:
        found = _VERSION.search(programs.ask([program, "--version"], _SECONDS).out)
    except OSError:
        return ""
    return found[1] if found is not None else ""
