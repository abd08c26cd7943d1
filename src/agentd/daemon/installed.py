"""Which distribution this agentd was installed by, and who else has its import name."""

import os
from collections.abc import Iterator
from importlib import metadata

import msgspec

from agentd import _version
from agentd.model.availability import Blocker
from agentd.model.install import DISTRIBUTION, replacing
from agentd.transport.text import safe_text

# The name that checkouts had before, and that another project has on PyPI.
_OTHER_PROJECT = "agentd"


class Installation(msgspec.Struct, frozen=True):
    """``path``: the folder it runs from; ``clashes``: the other owners of its import name."""

    distribution: str
    version: str
    path: str
    clashes: tuple[Blocker, ...]


def installation() -> Installation:
    folder = os.path.dirname(_version.__file__)
    return Installation(DISTRIBUTION, _version.__version__, folder, tuple(clashes()))


def clashes() -> Iterator[Blocker]:
    """Yield each other distribution that has the import name: the two remove each other's files."""
    seen: set[str] = set()
    for found in metadata.distributions():
        name = _normal(safe_text(found.metadata["Name"] or ""))
        if name in (DISTRIBUTION, *seen) or not _has_the_name(found, name):
            continue
        seen.add(name)
        what = (
            f"the distribution {name} {safe_text(found.version)} has the import name agentd, too: "
            f"upgrading or removing it changes files of {DISTRIBUTION}"
        )
        if name == _OTHER_PROJECT:
            what += " (agentd on PyPI is another project; older checkouts had that name)"
        yield Blocker(what, replacing(name))


def _has_the_name(found: metadata.Distribution, name: str) -> bool:
    # Not found.files: it reads every line of every RECORD into an object.
    record = found.read_text("RECORD") or ""
    return name == _OTHER_PROJECT or f"\n{record}".find("\nagentd/__init__.py,") >= 0


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
