"""``agentd capability``: what can be asked for by name, and how."""

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from agentd.client.cli import remote, table
from agentd.client.cli.parser import Parser
from agentd.model.errors import InvalidInput
from agentd.model.units import counted

if TYPE_CHECKING:
    from agentd.model.capability import About, Example, Needs

_EXAMPLES = """\
  agentd capability ls
  agentd capability show fs.edit.v1
  agentd capability show fs.edit.v1 --json
"""


def main(words: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(words)
    if options.action == "ls":
        if options.name is not None:
            parser.error("ls takes no name: show does")
        return _list(options)
    return _show(options)


def _list(options: argparse.Namespace) -> int:
    from agentd.capability.registry import Registry

    found = Registry().all()
    abouts = [capability.about for capability in found.capabilities]
    broken = {name: error.as_dict() for name, error in found.broken.items()}
    told = {"capabilities": [_brief(about) for about in abouts], "broken": broken}
    rows = [
        (about.name, about.needs.level.label, _effects(about.needs), about.summary)
        for about in abouts
    ]
    table.tell(options, told, ("NAME", "WALL", "USES", "SUMMARY"), rows)
    for name, error in () if options.json else found.broken.items():
        print(f"agentd capability: {remote.safe(f'{name}: {error}')}", file=sys.stderr)
    return 0


def _show(options: argparse.Namespace) -> int:
    from agentd.capability.registry import Registry
    from agentd.policy.scopes import scope_of

    if not options.name:
        raise InvalidInput("no capability given", remediation="agentd capability ls lists them")
    about = Registry().get(options.name).about
    if options.json:
        remote.print_json({**_brief(about), "schema": about.schema, "examples": about.examples})
        return 0
    print(f"{about.name}: {remote.safe(about.summary)}\n")
    table.facts(
        [
            ("wall", f"{about.needs.level.label} or stronger" if about.needs.sandbox else "none"),
            ("runs", "in a sandbox" if about.needs.sandbox else "in the daemon"),
            ("scope", scope_of(about.name)),
            ("uses", _effects(about.needs)),
            ("time", f"{about.bounds.timeout:g} s, where the call says nothing"),
            ("answer", f"{_size(about.bounds.output)} of JSON at most"),
        ]
    )
    _parameters(about)
    _examples(about)
    return 0


def _parameters(about: "About") -> None:
    from agentd.client.cli import parameters

    print("\nparameters:")
    rows = parameters.rows(about.schema)
    table.show(("NAME", "KIND", "DEFAULT", "MEANING"), rows or [("none", "", "", "")])


def _examples(about: "About") -> None:
    print("\nexamples:" if about.examples else "")
    for example in about.examples:
        print(f"  # {remote.safe(example.about)}{_end(example)}")
        print(f"  agentd call {about.name} --params {_quoted(example)}")


def _quoted(example: "Example") -> str:
    import msgspec

    # JSON keeps control codes escaped; what else cannot be printed, ascii does.
    text = msgspec.json.encode(example.parameters).decode()
    if not text.isprintable():
        import json

        text = json.dumps(example.parameters)
    return shlex.quote(text)


def _end(example: "Example") -> str:
    return f" ({remote.safe(example.error)})" if example.error else ""


def _brief(about: "About") -> dict[str, object]:
    from agentd.policy.scopes import scope_of

    return {
        "name": about.name,
        "summary": about.summary,
        "needs": about.needs.told(),
        "scope": scope_of(about.name),
        "bounds": about.bounds,
    }


def _effects(needs: "Needs") -> str:
    used = [word for word in ("network", "writes") if getattr(needs, word)]
    return ", ".join(used) or "-"


def _size(count: int) -> str:
    for size, unit in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= size:
            return f"{count / size:g} {unit}"
    return counted(count, "byte")


def _parser() -> Parser:
    parser = Parser(
        prog="agentd capability",
        description="List what can be asked for by name where this runs, or show one.",
        epilog=f"examples:\n{_EXAMPLES}",
    )
    parser.action({"ls": "list them", "show": "show one, its parameters and examples"})
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the capability")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
