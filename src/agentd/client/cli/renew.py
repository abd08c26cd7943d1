"""``agentd renew``: more time for a sandbox."""

import argparse

from agentd.client.cli import remote, table

_EXAMPLES = """\
  agentd renew sbx-abcdefghijkl 1h             it ends an hour from now
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    from agentd.model.units import parse_duration

    ttl = parse_duration(options.ttl, "ttl")
    with remote.service(options) as service:
        view = service.sandboxes.renew(options.id, ttl)
    return remote.tell(options, view, f"{view.id} ends {table.until(view.deadline)}")


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser("renew", "Let a sandbox's lease end so long from now.", _EXAMPLES)
    parser.add_argument("id", metavar="ID", help=remote.SANDBOX_HELP)
    parser.add_argument("ttl", metavar="TIME", help="as 10m, 1h")
    return parser
