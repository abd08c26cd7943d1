"""Run in the sandbox that resolves and unpacks: pip, told of the Python that it works for.

``python3 -I -B driver.py PIP EXECUTABLE MARKERS ARG...``: pip is beneath the folder PIP; EXECUTABLE
is what scripts are to begin with; MARKERS is a JSON object, the environment of PEP 508's markers.
pip takes the tags of another Python by its options, and asks its own for the markers all the same.
"""

import json
import resource
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

BUILT = ": to build one would run its code"  # ends a complaint
STARTS = (
    *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"),
    *("pty.spawn", "subprocess.Popen"),
)
MEMORY = 1 << 30  # bytes; a page, or what a wheel says of itself, is read as a whole
UNFETCHED = "agentd: unfetched: "  # begins a line, as ``pip.raise_failure`` knows it


def tell_unfetched(collector: "ModuleType") -> None:
    """Make pip say what pages could not be had, and why: it goes on as if the index had none."""
    handle = getattr(collector, "_handle_get_simple_fail", None)

    def told(link: object, reason: object, meth: object = None) -> None:
        print(UNFETCHED + str(reason).replace("\n", " "), file=sys.stderr, flush=True)
        if handle is not None:
            handle(link, reason, meth)

    collector._handle_get_simple_fail = told  # type: ignore[attr-defined]


def refuse_builds() -> None:
    """Let no code of a package run: what ran here could write another lock, and other files, than
    those of the index. ``--only-binary`` does not hold for what a wheel needs by its address."""
    from pip._internal.distributions.sdist import SourceDistribution
    from pip._internal.exceptions import InstallationError

    def refuse(self: SourceDistribution, *_: object, **__: object) -> None:
        raise InstallationError(f"{self.req.name} is no wheel{BUILT}")

    SourceDistribution.prepare_distribution_metadata = refuse  # type: ignore[method-assign]
    sys.addaudithook(refuse_programs)


def refuse_programs(event: str, _: object) -> None:
    """Refuse to start a program: whatever way pip finds to a build, that would be one."""
    if event in STARTS:
        raise PermissionError("no program is started where packages are resolved")


def main() -> int:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = MEMORY if hard < 0 else min(MEMORY, hard)  # less is the service's, say, and -1 none
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    pip, executable, markers = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    sys.path.insert(0, pip)
    from pip._internal.cli.main import main as run
    from pip._internal.commands import install  # noqa: F401  what it needs, too
    from pip._internal.index import collector
    from pip._vendor.packaging import markers as evaluated

    # Looked up by this name at each evaluation; a test asks for a package by another's markers.
    evaluated.default_environment = lambda: dict(markers)  # type: ignore[assignment,return-value]
    tell_unfetched(collector)
    refuse_builds()
    sys.executable = executable
    return run(sys.argv[4:])


if __name__ == "__main__":
    sys.exit(main())
