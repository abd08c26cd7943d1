"""``agentd doctor``: what will happen here, which walls work, and what it takes to get more."""

from typing import TYPE_CHECKING, Any

from agentd.client.cli import remote, table
from agentd.client.cli.parser import Parser
from agentd.model.isolation import IsolationLevel

if TYPE_CHECKING:
    from agentd.client.embedded import CheckedPart, Checkup, Finding
    from agentd.model.availability import Availability, Blocker

_EXAMPLES = """\
examples:
  agentd doctor
  agentd doctor -v                                  every reason, and the facts of this machine
  agentd doctor --json | jq -r .run.backend         what agentd run uses here
  agentd doctor --json | jq -r '.backends[] | select(.usable) | .name'
"""
# A default sandbox needs none of the stronger walls: what they lack is told when asked for.
_WANTED = IsolationLevel.NAMESPACE


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    from agentd.client import embedded
    from agentd.client.http import address

    found, installation, daemon = embedded.doctor(), embedded.installation(), address.running()
    via = None if daemon is None else str(daemon)
    if options.json:
        remote.print_json(as_dict(found, via) | {"installation": installation})
        return 0
    _show_outlook(found, via)
    _show_walls(found, verbose=options.verbose)
    for blocker in installation.clashes:
        _show_whole("installation", blocker)
    if options.verbose:
        print()
        table.facts([(name.replace("_", " "), _words(v)) for name, v in found.machine.items()])
    else:
        table.paragraph("\nagentd doctor -v tells every reason, and the facts of this machine.")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="agentd doctor",
        description="Say what agentd run uses on this machine, which walls work, and exactly "
        "what it takes to get the others.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="tell all")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def as_dict(found: "Checkup", via: str | None = None) -> dict[str, Any]:
    """Return it for JSON; ``via`` is the daemon that ``agentd run`` would go to, if any."""
    import msgspec

    backends = [
        {
            "name": finding.name,
            "level": finding.level,
            "usable": finding.availability.usable,
            "blockers": finding.availability.blockers,
            "notes": finding.availability.notes,
            "requirements": finding.requirements,
            "images": finding.images,
            "abilities": finding.abilities,
            "fidelity": finding.fidelity,
        }
        for finding in found.findings
    ]
    parts = [
        {
            "name": part.name,
            "usable": part.availability.usable,
            "blockers": part.availability.blockers,
            "notes": part.availability.notes,
        }
        for part in found.parts
    ]
    run = {**msgspec.structs.asdict(found.run), "via": via or "embedded"}
    return {"run": run, "backends": backends, "parts": parts, "machine": found.machine}


# --- what will happen ---


def _show_outlook(found: "Checkup", via: str | None) -> None:
    from agentd.model.enforcement import reasons, unlimited

    run = found.run
    if via is not None:
        table.paragraph(
            f"agentd run goes to the daemon at {via}, which has settings of its own. "
            "With --embedded:"
        )
    if run.blocker is not None:
        table.paragraph(f"agentd run cannot work here: {run.blocker.what}", "bold red")
        if run.blocker.fix:
            table.paragraph(f"{run.blocker.fix[0].upper()}{run.blocker.fix[1:]}", "yellow")
        if run.weaker and f"--isolation {run.weaker}" not in run.blocker.fix:
            table.paragraph(f"This works: agentd run --isolation {run.weaker}", "green")
        return
    table.paragraph(f"agentd run will use {run.backend} (isolation {run.level}).", "bold green")
    missing = unlimited(run.unheld)
    if missing:
        table.paragraph(f"{missing[0].upper()}{missing[1:]}: {reasons(run.unheld)}.", "yellow")
    elif scope := found.machine.get("cgroup_scope"):
        held = "Memory, processors and processes are limited by a scope of your systemd"
        table.paragraph(f"{held} ({scope}).", "green")
    for finding in found.findings:
        if finding.name == run.backend and not run.tried:
            for note in finding.availability.notes:
                table.paragraph(f"{note}.", "yellow")


# --- a line a wall ---


def _show_walls(found: "Checkup", *, verbose: bool) -> None:
    told = [control.detail for control in found.run.unheld.values()]
    rows: list[tuple[object, ...]] = []
    below: list[tuple[str, Blocker]] = []
    for finding in found.findings:
        folded = not verbose and _is_optional(finding)
        remark = _remark(finding.name, finding.availability, told, below, folded=folded)
        usable = _usable(finding.availability, caveat=bool(finding.availability.notes))
        rows.append((finding.name, finding.level, usable, remark))
    parts = [p for p in found.parts if verbose or not (p.detail and p.availability.usable)]
    rows += [_part_row(part, below) for part in parts]
    print()
    table.show(("WALL", "ISOLATION", "USABLE", "WHY, AND WHAT HELPS"), rows)
    for name, blocker in below:
        _show_whole(name, blocker)


def _show_whole(name: str, blocker: "Blocker") -> None:
    """Show its fix as it is, to be copied."""
    table.paragraph(f"\n{name}: {blocker.what}")
    for line in blocker.fix.splitlines():
        print(f"    {remote.safe(line)}")


def _part_row(part: "CheckedPart", below: "list[tuple[str, Blocker]]") -> tuple[object, ...]:
    found = part.availability
    return (
        part.name,
        "-",
        _usable(found, caveat=False),
        _remark(part.name, found, [], below, folded=False),
    )


def _is_optional(finding: "Finding") -> bool:
    known = [level for level in IsolationLevel if level.label == finding.level]
    return not known or known[0] > _WANTED


def _usable(found: "Availability", *, caveat: bool) -> table.Marked:
    if not found.usable:
        return table.Marked("no", "red")
    return table.Marked("yes", "yellow" if caveat else "green")


def _remark(
    name: str,
    found: "Availability",
    told: list[str],
    below: "list[tuple[str, Blocker]]",
    *,
    folded: bool,
) -> tuple[str, ...]:
    """``told`` stands above already; ``below`` gets what is too long for a table."""
    if not found.blockers:
        return tuple(_shortened(note, told) for note in found.notes)
    first, count = found.blockers[0], len(found.blockers)
    if count > 1:
        # A line a wall: what there is more of stands beneath, where it was asked for.
        below += [] if folded else [(name, blocker) for blocker in found.blockers]
        return (f"{first.what} (1 of {count} reasons{'' if folded else ': see below'})",)
    if "\n" in first.fix.strip():
        below.append((name, first))  # to be copied whole, which a table does not allow
        return first.what, "  fix: see below"
    return first.what, *([f"  fix: {first.fix}"] if first.fix else [])


def _shortened(note: str, told: list[str]) -> str:
    for detail in told:
        note = note.replace(detail, "see above")
    return note


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else str(value)
