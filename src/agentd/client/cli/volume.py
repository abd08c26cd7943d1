"""``agentd volume``: folders that outlive sandboxes."""

import argparse
from typing import TYPE_CHECKING

from agentd.client.cli import remote, table
from agentd.client.cli.parser import Parser

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
    remote.check_where(options)
    _check(options)
    from agentd.client.cli import place

    with place.service(_daemon(options)) as service:
        return int(options.run(options, service.volumes))


def _check(options: argparse.Namespace) -> None:
    """Raises InvalidInput for what would be no volume, before anybody is asked for one."""
    from agentd.model.mount import check_volume
    from agentd.model.units import parse_size

    if options.action == "create":
        check_volume(options.name)
        if options.size is not None:
            parse_size(options.size, "--size")
    elif options.action == "snapshot":
        check_volume(options.new)


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
    actions = parser.actions(_options)
    create = actions.add("create", "make an empty one", "  agentd volume create data\n", _create)
    create.add_argument("name", metavar="NAME", help="of your own")
    create.add_argument(
        "--size", metavar="SIZE", help="what it holds at most, as 1GiB; refused without root"
    )
    actions.add("ls", "list yours", "  agentd volume ls\n", _ls)
    example = "  agentd volume inspect data --json\n"
    inspect = actions.add("inspect", "show one, and which sandboxes have it", example, _inspect)
    inspect.add_argument("name", metavar="NAME", help="of one of yours")
    example = "  agentd volume snapshot data data-before\n"
    about = "make another that has what one has now"
    snapshot = actions.add("snapshot", about, example, _snapshot)
    snapshot.add_argument("name", metavar="NAME", help="of one of yours")
    snapshot.add_argument("new", metavar="NEW", help="the name of the copy")
    about, example = "delete them, and all that is in them", "  agentd volume rm data\n"
    remove = actions.add("rm", about, example, remote.remove)
    remove.add_argument("names", metavar="NAME", nargs="+", help="of some of yours")
    return parser


def _options(parser: Parser) -> None:
    remote.daemon_options(parser)
    parser.add_argument(
        "--embedded", action="store_true", help="yours of this process, whatever daemon runs"
    )


def _create(options: argparse.Namespace, volumes: "Volumes") -> int:
    made = volumes.create(options.name, options.size)
    return remote.tell(options, made, made.name)


def _ls(options: argparse.Namespace, volumes: "Volumes") -> int:
    found = volumes.list()
    rows = [(view.name, table.ago(view.created), _size(view), _users(view)) for view in found]
    return table.tell(options, found, ("VOLUME", "CREATED", "SIZE", "IN USE BY"), rows)


def _inspect(options: argparse.Namespace, volumes: "Volumes") -> int:
    view = volumes.get(options.name)
    facts = [
        ("name", view.name),
        ("of", view.principal),
        ("created", table.ago(view.created)),
        ("size", _size(view)),
        ("in use by", _users(view)),
    ]
    return table.tell_facts(options, view, facts)


def _snapshot(options: argparse.Namespace, volumes: "Volumes") -> int:
    made = volumes.snapshot(options.name, options.new)
    return remote.tell(options, made, made.name)


def _size(view: "VolumeView") -> str:
    from agentd.model.units import readable_size

    return "not bounded" if view.size is None else f"at most {readable_size(view.size)}"


def _users(view: "VolumeView") -> str:
    return ", ".join(view.sandboxes) or "-"
