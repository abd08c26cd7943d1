"""Run in the sandbox that resolves and unpacks: pip, told of the Python that it works for.

``python3 -I driver.py PIP EXECUTABLE MARKERS ARG...``: pip is beneath the folder PIP; EXECUTABLE is
what scripts are to begin with; MARKERS is a JSON object, the environment of PEP 508's markers. pip
takes the tags of another Python by its options, and asks its own for the markers all the same.
"""

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

UNFETCHED = "agentd: unfetched: "  # begins a line, as ``pip.raise_failure`` knows it


def tell_unfetched(collector: "ModuleType") -> None:
    """Have said what pages could not be had, and why: pip goes on as if the index had none."""
    handle = getattr(collector, "_handle_get_simple_fail", None)

    def told(link: object, reason: object, meth: object = None) -> None:
        print(UNFETCHED + str(reason).replace("\n", " "), file=sys.stderr, flush=True)
        if handle is not None:
            handle(link, reason, meth)

    collector._handle_get_simple_fail = told  # type: ignore[attr-defined]


def main() -> int:
    pip, executable, markers = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    sys.path.insert(0, pip)
    from pip._internal.cli.main import main as run
    from pip._internal.commands import install  # noqa: F401  what it needs, too
    from pip._internal.index import collector
    from pip._vendor.packaging import markers as evaluated

    # Looked up by this name at each evaluation; a test asks for a package by another's markers.
    evaluated.default_environment = lambda: dict(markers)  # type: ignore[assignment,return-value]
    tell_unfetched(collector)
    sys.executable = executable
    # Bytecode of pip's own is not written where it is; that of packages is to lie beside them.
    sys.pycache_prefix = None
    return run(sys.argv[4:])


if __name__ == "__main__":
    sys.exit(main())
