"""``agentd volume``: folders that outlive sandboxes."""

import argparse
from typing import TYPE_CHECKING

from agentd.client.cli import remote, table
from agentd.client.cli.parser import Actions, Parser

if TYPE_CHECKING:
    from agentd.client.http.address import Address
    from agentd.model.api import VolumeView
    from agentd.model.service import Volumes

_EXAMPLES = """\
examples:
  agentd volume create data
  agentd volume create cache --size 1GiB          as root: it holds no more
  agentd run --volume data:/data -- sh -c 'echo kept > /data/note'
  agentd run --volume data:/data:ro -- cat /data/note
  agentd volume snapshot data before
  agentd volume ls
  agentd volume rm data before
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    from agentd.client.cli import place

    with place.service(_daemon(options)) as service:
        return int(options.run(options, service.volumes))


def _daemon(options: argparse.Namespace) -> "Address | None":
    """As with ``agentd run``: the daemon that was named, or one that listens at the usual place."""
    if options.embedded:
        return None
    from agentd.client.http import address

    return address.running(options.url)


def _parser() -> Parser:
    parser = Parser(
        prog="agentd volume",
        description="Volumes: folders that outlive sandboxes, for any number of them at once.",
        epilog=_EXAMPLES,
    )
    actions = parser.actions()
    create = _action(actions, "create", "make an empty one", "  agentd volume create data\n")
    create.add_argument("name", metavar="NAME")
    create.add_argument(
        "--size", metavar="SIZE", help="what it holds at most, as 1GiB; refused without root"
    )
    create.set_defaults(run=_create)
    _action(actions, "ls", "list yours", "  agentd volume ls\n").set_defaults(run=_ls)
    inspect = _action(
        actions,
        "inspect",
        "show one, and which sandboxes have it",
        "  agentd volume inspect data --json\n",
    )
    inspect.add_argument("name", metavar="NAME")
    inspect.set_defaults(run=_inspect)
    snapshot = _action(
        actions,
        "snapshot",
        "make another that has what one has now",
        "  agentd volume snapshot data data-before\n",
    )
    snapshot.add_argument("name", metavar="NAME")
    snapshot.add_argument("new", metavar="NEW")
    snapshot.set_defaults(run=_snapshot)
    remove = _action(
        actions, "rm", "delete them, and all that is in them", "  agentd volume rm data\n"
    )
    remove.add_argument("names", metavar="NAME", nargs="+")
    remove.set_defaults(run=_rm)
    return parser


def _action(actions: Actions, name: str, text: str, examples: str) -> argparse.ArgumentParser:
    made = actions.add(name, text, examples)
    made.add_argument("--url", metavar="URL", help=remote.URL_HELP)
    made.add_argument(
        "--embedded", action="store_true", help="yours of this process, whatever daemon runs"
    )
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def _create(options: argparse.Namespace, volumes: "Volumes") -> int:
    made = volumes.create(options.name, options.size)
    remote.print_json(made) if options.json else print(made.name)
    return 0


def _ls(options: argparse.Namespace, volumes: "Volumes") -> int:
    found = volumes.list()
    if options.json:
        remote.print_json(found)
    else:
        rows = [(view.name, table.ago(view.created), _size(view), _users(view)) for view in found]
        table.show(("VOLUME", "CREATED", "SIZE", "IN USE BY"), rows)
    return 0


def _inspect(options: argparse.Namespace, volumes: "Volumes") -> int:
    view = volumes.get(options.name)
    if options.json:
        remote.print_json(view)
        return 0
    table.facts(
        [
            ("name", view.name),
            ("of", view.principal),
            ("created", table.ago(view.created)),
            ("size", _size(view)),
            ("in use by", _users(view)),
        ]
    )
    return 0


def _snapshot(options: argparse.Namespace, volumes: "Volumes") -> int:
    made = volumes.snapshot(options.name, options.new)
    remote.print_json(made) if options.json else print(made.name)
    return 0


def _rm(options: argparse.Namespace, volumes: "Volumes") -> int:
    names = list(dict.fromkeys(options.names))
    for name in names:
        volumes.delete(name)
    if options.json:
        remote.print_json({"removed": names})
    return 0


def _size(view: "VolumeView") -> str:
    from agentd.model.units import readable_size

    return "not bounded" if view.size is None else f"at most {readable_size(view.size)}"


def _users(view: "VolumeView") -> str:
    return ", ".join(view.sandboxes) or "-"
