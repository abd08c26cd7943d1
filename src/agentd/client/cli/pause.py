"""``agentd pause``: everything in a sandbox stands still."""

import argparse

from agentd.client.cli import remote

_EXAMPLES = """\
  agentd pause sbx-abcdefghijkl
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    with remote.service(options) as service:
        return remote.to_each(
            options, options.id, service.sandboxes.pause, lambda done: list(done.values())
        )


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser(
        "pause", "Let everything in sandboxes stand still, where their wall can.", _EXAMPLES
    )
    parser.add_argument("id", metavar="ID", nargs="+", help=remote.SANDBOX_HELP)
    return parser
