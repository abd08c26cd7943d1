"""``agentd packages``: the packages that are kept for sandboxes."""

import argparse

from agentd.client.cli import remote, table
from agentd.client.cli.parser import Parser

_EXAMPLES = """\
examples:
  agentd run --with numpy,pandas -- python3 -c 'import pandas'
  agentd packages ls
  agentd packages prune
"""


def main(words: list[str]) -> int:
    return _parser().run(words)


def _parser() -> Parser:
    parser = Parser(
        prog="agentd packages",
        description="Packages that sandboxes were given by --with, as they are kept for the next: "
        "this user's, and those of daemons that run as this user.",
        epilog=_EXAMPLES,
    )
    actions = parser.actions(remote.json_option)
    about = "list what is kept, the latest used first"
    actions.add("ls", about, "  agentd packages ls\n", _ls)
    about = "remove all that no sandbox has; it is fetched again"
    actions.add("prune", about, "  agentd packages prune\n", _prune)
    return parser


def _ls(options: argparse.Namespace) -> int:
    from agentd.model.units import readable_size
    from agentd.sandbox.packages import PackageStore

    found = PackageStore().all()
    views = [
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
    rows = [
        (
            kept.digest.removeprefix("sha256:")[:12],
            readable_size(kept.bytes),
            "now" if in_use else table.ago(used),
            " ".join(f"{each.name}=={each.version}" for each in kept.packages),
        )
        for kept, used, in_use in found
    ]
    return table.tell(options, views, ("DIGEST", "SIZE", "USED", "PACKAGES"), rows)


def _prune(options: argparse.Namespace) -> int:
    from agentd.model.units import readable_size
    from agentd.sandbox.packages import PackageStore

    freed = PackageStore().prune()
    return remote.tell(options, {"freed": freed}, f"{readable_size(freed)} freed")
