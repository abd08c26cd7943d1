"""``agentd kill``: the end of sandboxes, or a signal to a command."""

import argparse
import re

from agentd.client.cli import remote
from agentd.client.cli.parser import named
from agentd.model.errors import InvalidInput

_EXAMPLES = """\
  agentd kill sbx-abcdefghijkl
  agentd ls -q --label job=7 | xargs agentd kill
  agentd kill sbx-abcdefghijkl --process prc-0123456789abcdef --signal TERM
"""
_COMMAND = re.compile("prc-[0-9a-f]{16,}")


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    if options.process is not None and len(options.id) > 1:
        raise InvalidInput("--process is of one sandbox", remediation="name one ID")
    if options.signal is not None and options.process is None:
        raise InvalidInput("--signal is for a process", remediation="add --process")
    for id_ in options.id:
        _check(id_)  # all of them, before anything is ended
    number = _number(options.signal or "KILL")
    with remote.service(options) as service:

        def end(id_: str) -> None:
            if options.process is None:
                service.sandboxes.kill(id_)
            else:
                service.commands.signal(id_, options.process, number)

        return remote.to_each(options, options.id, end, lambda done: {"ended": list(done)})


def _check(id_: str) -> None:
    """Raises InvalidInput for what can be no sandbox's: the others would be ended, and were perhaps
    to go on."""
    if id_.startswith("-"):
        raise InvalidInput(f"{id_} is no ID", remediation="write --process PROCESS --signal NAME")
    if _COMMAND.fullmatch(id_):
        raise InvalidInput(f"{id_} is a command", remediation=f"write ID --process {id_}")


def _number(text: str) -> int:
    import signal

    if text.isascii() and text.isdigit() and int(text[:4]) < signal.NSIG:
        return int(text)
    try:
        return int(signal.Signals[f"SIG{text.upper().removeprefix('SIG')}"])
    except KeyError:
        raise InvalidInput(
            f"signal {text!r} is not known", remediation="write it as TERM or 15"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser("kill", "End sandboxes and everything in them.", _EXAMPLES)
    parser.add_argument("--process", metavar="PROCESS", help="signal this command alone")
    parser.add_argument(
        "--signal", type=named, metavar="NAME", help="which, for --process (default: KILL)"
    )
    parser.add_argument("id", metavar="ID", nargs="+", help=remote.SANDBOX_HELP)
    return parser
