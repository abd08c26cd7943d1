"""``agentd shell``: a shell in a daemon's sandbox."""

import argparse
import os

from agentd.client.cli import remote
from agentd.client.cli.exec import command_options, execute
from agentd.client.cli.parser import Parser, named

_EXAMPLES = """\
  agentd shell sbx-abcdefghijkl
  agentd shell sbx-abcdefghijkl --shell zsh
  echo 'uname -a' | agentd shell sbx-abcdefghijkl

Ctrl-P Ctrl-Q leaves it running: agentd attach comes back to it.
"""
# What most people would type, where it is there.
_BEST = 'command -v bash >/dev/null 2>&1 && exec bash "$@" || exec sh "$@"'


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    options.tty = os.isatty(0)
    options.stdin = True
    options.detach = options.json = False
    options.command = [options.shell] if options.shell else ["sh", "-c", _BEST, "sh"]
    return execute(options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="agentd shell",
        description="Open a shell in a sandbox.",
        epilog=f"examples:\n{_EXAMPLES}",
    )
    parser.add_argument("--url", metavar="URL", help=remote.URL_HELP)
    command_options(parser)
    parser.add_argument("--shell", type=named, metavar="PROGRAM", help="default: bash, or sh")
    parser.add_argument("id", metavar="ID", help=remote.SANDBOX_HELP)
    parser.set_defaults(name="shell")
    return parser
