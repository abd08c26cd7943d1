"""The doors there are, by name: agentd's own, and those of other packages by an entry point."""

from typing import TYPE_CHECKING

from agentd.model.errors import InvalidInput

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: Each gives a function mount(web, gatekeeper) -> Mount.
BUILTIN = {"rest": "agentd.ingest.rest.app:mount"}
ENTRY_POINTS = "agentd.ingests"


def known() -> list[str]:
    """List all names that ``serves`` may have."""
    return sorted({*BUILTIN, *installed()})


def installed() -> "dict[str, EntryPoint]":
    """Find those of other packages; none takes the name of one of ours. Raises InvalidInput where
    two have one name: which of them was meant, nobody can tell."""
    # Reading every installed package's metadata costs 10 ms and more: never on the common path.
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in found:
            packages = " and ".join(sorted(map(package_of, (found[point.name], point))))
            raise InvalidInput(
                f"the packages {packages} both have a door {point.name!r}",
                remediation="uninstall one of them",
            )
        if point.name not in BUILTIN:
            found[point.name] = point
    return found


def package_of(point: "EntryPoint") -> str:
    return point.dist.name if point.dist is not None else "?"
