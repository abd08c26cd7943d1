"""``agentd pause``: everything in a sandbox stands still."""

import argparse

from agentd.client.cli import remote

_EXAMPLES = """\
  agentd pause sbx-abcdefghijkl
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    found = []
    for id_ in options.id:
        with remote.sandbox(options, id_) as sandbox:
            sandbox.pause()
            found.append(sandbox.view)
    if options.json:
        remote.print_json(found)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser(
        "pause", "Let everything in sandboxes stand still, where their wall can.", _EXAMPLES
    )
    parser.add_argument("id", metavar="ID", nargs="+")
    return parser
