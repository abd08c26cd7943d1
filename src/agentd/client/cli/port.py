"""``agentd port``: a port of this machine that leads into a daemon's sandbox, or a link to one."""

import argparse
import sys
import time

from agentd.client.cli import remote
from agentd.client.cli.parser import named
from agentd.model.errors import InvalidInput
from agentd.model.units import parse_count, parse_duration

_EXAMPLES = """\
  agentd port sbx-abcdefghijkl 8080                        prints 127.0.0.1:PORT, until Ctrl-C
  agentd port sbx-abcdefghijkl 5432 --host-port 15432      whatever it speaks
  agentd port sbx-abcdefghijkl 8080 --link --ttl 8h        prints an address for a browser, and ends
"""
_LOOK_SECONDS = 2.0


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    if options.ttl is not None and not options.link:
        raise InvalidInput("--ttl is of a link", remediation="add --link")
    if options.host_port and options.link:
        raise InvalidInput(
            "--link opens no port of this machine", remediation="give --link or --host-port"
        )
    if options.ttl is not None:
        parse_duration(options.ttl, "--ttl")
    from agentd.client.forward import Forwards, SandboxPorts

    with remote.service(options) as service:
        if options.link:
            link = service.ports.link(options.id, options.port, ttl=options.ttl or "1h")
            if options.json:
                remote.print_json(link)
            else:
                print(link.url)
            return 0
        id_ = service.sandboxes.get(options.id).id
        ports = SandboxPorts(service.ports, id_, Forwards())
        with ports.forward(options.port, options.host_port) as forward:
            address = "{}:{}".format(*forward.address)
            url = forward.named(id_, options.port)
            if options.json:
                about = {"address": address, "url": url, "sandbox": id_, "port": options.port}
                remote.print_json(about)
            else:
                print(address)
                print(f"{url}  (in a browser)")
                sys.stdout.flush()
            while True:  # until it is interrupted, or the sandbox has ended: NotFound
                time.sleep(_LOOK_SECONDS)
                service.sandboxes.get(id_)


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser(
        "port", "Let a port of 127.0.0.1 lead to one in a sandbox, until interrupted.", _EXAMPLES
    )
    parser.add_argument(
        "--host-port",
        metavar="N",
        type=_number,
        default=0,
        help="which port here (default: a free one)",
    )
    parser.add_argument(
        "--link",
        action="store_true",
        help="print an address of the daemon's own for a browser, for whoever has it",
    )
    parser.add_argument(
        "--ttl", type=named, metavar="TIME", help="how long the link lasts (default: 1h)"
    )
    parser.add_argument("id", metavar="ID", help=remote.SANDBOX_HELP)
    parser.add_argument("port", metavar="PORT", type=_number, help="the port inside")
    return parser


def _number(text: str) -> int:
    try:
        return parse_count(text, "port", 0, 65535)
    except InvalidInput:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no port; give a number from 1 to 65535"
        ) from None
