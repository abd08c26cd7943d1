"""``agentd resume``: a sandbox that stands still goes on."""

import argparse

from agentd.client.cli import remote

_EXAMPLES = """\
  agentd resume sbx-abcdefghijkl
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    with remote.service(options) as service:
        found = [service.sandboxes.resume(id_) for id_ in options.id]
    return remote.tell(options, found)


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser("resume", "Let sandboxes that stand still go on.", _EXAMPLES)
    parser.add_argument("id", metavar="ID", nargs="+", help=remote.SANDBOX_HELP)
    return parser
