"""The doors there are, by name: agentd's own, and those of other packages by an entry point."""

from importlib.metadata import EntryPoint

#: Each gives a function mount(web, service, gatekeeper) -> Mount.
BUILTIN = {"rest": "agentd.ingest.rest.app:mount"}
ENTRY_POINTS = "agentd.ingests"


def known() -> list[str]:
    """All names that ``serves`` may have."""
    return sorted({*BUILTIN, *installed()})


def installed() -> dict[str, EntryPoint]:
    """Those of other packages; none takes the name of one of ours."""
    # Reading every installed package's metadata costs 10 ms and more: never on the common path.
    from importlib.metadata import entry_points

    return {p.name: p for p in entry_points(group=ENTRY_POINTS) if p.name not in BUILTIN}
