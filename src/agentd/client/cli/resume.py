"""``agentd resume``: a sandbox that stands still goes on."""

import argparse

from agentd.client.cli import remote

_EXAMPLES = """\
  agentd resume sbx-abcdefghijkl
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    with remote.service(options) as service:
        return remote.to_each(
            options, options.id, service.sandboxes.resume, lambda done: list(done.values())
        )


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser("resume", "Let sandboxes that stand still go on.", _EXAMPLES)
    parser.add_argument("id", metavar="ID", nargs="+", help=remote.SANDBOX_HELP)
    return parser
