"""``agentd ls``: the sandboxes of a daemon."""

import argparse
from typing import TYPE_CHECKING

from agentd.client.cli import remote, table
from agentd.client.cli.parser import named

if TYPE_CHECKING:
    from agentd.model.api import SandboxView

_EXAMPLES = """\
  agentd ls
  agentd ls --label job=7 --json
  agentd ls -q | xargs agentd kill
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    labels = remote.labels(options.label)
    with remote.service(options) as service:
        found = service.sandboxes.list(labels=labels, state=options.state)
    _show(found, options)
    return 0


def _show(found: "tuple[SandboxView, ...]", options: argparse.Namespace) -> None:
    if options.json:
        remote.print_json(found)
    elif options.quiet:
        for view in found:
            print(view.id)
    else:
        rows = [
            (
                view.id,
                view.name or "-",
                view.state,
                f"{view.backend} ({view.level})",
                table.ago(view.created),
                table.until(view.deadline),
                view.principal,
                ",".join(f"{k}={v}" for k, v in view.labels.items()) or "-",
            )
            for view in found
        ]
        table.show(("ID", "NAME", "STATE", "WALL", "CREATED", "ENDS", "OWNER", "LABELS"), rows)


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser("ls", "List the sandboxes that you may see.", _EXAMPLES)
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the ids")
    parser.add_argument(
        "--state", type=named, metavar="STATE", help="only those in this state, such as ready"
    )
    parser.add_argument(
        "--label",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="only those with this label",
    )
    return parser
