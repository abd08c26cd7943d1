"""``agentd packages``: the packages that are kept for sandboxes."""

import argparse

from agentd.client.cli import remote, table
from agentd.client.cli.parser import Actions, Parser

_EXAMPLES = """\
examples:
  agentd run --with numpy,pandas -- python3 -c 'import pandas'
  agentd packages ls
  agentd packages prune
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    return int(options.run(options))


def _parser() -> Parser:
    parser = Parser(
        prog="agentd packages",
        description="Packages that sandboxes were given by --with, as they are kept for the next: "
        "this user's, and those of daemons that run as this user.",
        epilog=_EXAMPLES,
    )
    actions = parser.actions()
    shown = _action(actions, "ls", "list what is kept, the latest used first")
    shown.set_defaults(run=_ls)
    pruned = _action(actions, "prune", "remove all that no sandbox has; it is fetched again")
    pruned.set_defaults(run=_prune)
    return parser


def _action(actions: Actions, name: str, text: str) -> argparse.ArgumentParser:
    made = actions.add(name, text, f"  agentd packages {name}\n")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def _ls(options: argparse.Namespace) -> int:
    from agentd.model.units import readable_size
    from agentd.sandbox.packages import PackageStore

    found = PackageStore().all()
    if options.json:
        remote.print_json(
            [
                {
                    "digest": kept.digest,
                    "python": kept.python,
                    "bytes": kept.bytes,
                    "used": used,
                    "in_use": in_use,
                    "packages": kept.packages,
                }
                for kept, used, in_use in found
            ]
        )
        return 0
    rows = [
        (
            kept.digest.removeprefix("sha256:")[:12],
            readable_size(kept.bytes),
            "now" if in_use else table.ago(used),
            " ".join(f"{each.name}=={each.version}" for each in kept.packages),
        )
        for kept, used, in_use in found
    ]
    table.show(("DIGEST", "SIZE", "USED", "PACKAGES"), rows)
    return 0


def _prune(options: argparse.Namespace) -> int:
    from agentd.model.units import readable_size
    from agentd.sandbox.packages import PackageStore

    freed = PackageStore().prune()
    if options.json:
        remote.print_json({"bytes": freed})
    else:
        print(f"{readable_size(freed)} freed")
    return 0
