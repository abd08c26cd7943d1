"""``agentd template``: what the configuration says sandboxes may be made as."""

import argparse
import shlex
from typing import TYPE_CHECKING

from agentd.client.cli import remote, table
from agentd.client.cli.parser import Parser

if TYPE_CHECKING:
    from agentd.model.template import TemplateView

_EXAMPLES = """\
examples:
  agentd template ls
  agentd template ls --json | jq -r '.[].name'
  agentd run --template web -- true
"""


def main(words: list[str]) -> int:
    return _parser().run(words)


def _parser() -> Parser:
    parser = Parser(
        prog="agentd template",
        description="Templates: what the daemon's configuration says sandboxes may be made as.",
        epilog=_EXAMPLES,
    )
    actions = parser.actions(remote.daemon_options)
    listed = actions.add("ls", "list them", "  agentd template ls --json\n", _ls)
    listed.add_argument(
        "--embedded", action="store_true", help="those of this process, whatever daemon runs"
    )
    return parser


def _ls(options: argparse.Namespace) -> int:
    found = _found(options)
    rows = [
        (view.name, view.image, _wall(view), view.net, shlex.join(view.start) or "-", _ready(view))
        for view in found
    ]
    headings = ("TEMPLATE", "IMAGE", "WALL", "NETWORK", "STARTS", "READY")
    return table.tell(options, found, headings, rows)


def _found(options: argparse.Namespace) -> "tuple[TemplateView, ...]":
    """As with ``agentd run``: those of the daemon that was named, or of one that listens at the
    usual place; else of the configuration that one would have."""
    from agentd.client import embedded
    from agentd.client.http import address

    remote.check_where(options)
    where = None if options.embedded else address.running(options.url)
    if where is None:
        return embedded.templates()
    from agentd.client.cli import place

    with place.service(where) as service:
        return service.machine.templates()


def _wall(view: "TemplateView") -> str:
    return view.backend or view.isolation or "-"


def _ready(view: "TemplateView") -> str:
    return f"{view.standing} of {view.min}" if view.min else str(view.standing)
