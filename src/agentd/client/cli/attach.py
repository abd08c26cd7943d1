"""``agentd attach``: back to a command that runs in a daemon's sandbox."""

import argparse
import os

from agentd.client.cli import remote
from agentd.client.cli.interrupts import Interrupted, Interrupts
from agentd.model.errors import InvalidInput, NotFound

_EXAMPLES = """\
  agentd attach sbx-abcdefghijkl prc-0123456789abcdef
  agentd attach sbx-abcdefghijkl prc-0123456789abcdef --all      all of its output
  agentd attach sbx-abcdefghijkl                                 if one command runs there

A signal to agentd attach leaves the command as it is; so does Ctrl-P Ctrl-Q at a terminal.
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    with Interrupts(of_daemon=True) as interrupts:
        try:
            return _attach(options, interrupts)
        except Interrupted as interrupted:
            return 128 + interrupted.number


def _attach(options: argparse.Namespace, interrupts: Interrupts) -> int:
    from agentd.client.cli import output, streams
    from agentd.client.cli.follow import Follow

    with remote.service(options) as service:
        commands = service.commands
        with interrupts.allowed():
            process = options.process
            if process is None:
                process = only(commands.list(options.id), running=True)
            view = commands.get(options.id, process)
            tty = "pty" in view.output and os.isatty(0) and not options.json
            cursors = {} if options.all else view.output
            running = commands.attach(options.id, view.id, cursors, capture=options.json)
        try:
            follow = Follow(running, interrupts, stdin=options.stdin, tty=tty, leaves=True)
            if not follow.run():
                return 0
            result = running.finish()
        finally:
            running.detach()
    if options.json:
        streams.write_all(1, output.as_json(result))
    else:
        output.explain(result.cause, "attach", truncated=result.truncated)
    return output.exit_code(result)


def only(processes: "tuple", *, running: bool) -> str:  # type: ignore[type-arg]
    """Return the id of the one that is meant where none is named. Raises InvalidInput for several,
    NotFound for none."""
    found = [process for process in processes if process.state == "running" or not running]
    if len(found) == 1 or (found and not running):
        return str(found[-1].id)
    if not found:
        raise NotFound(
            "no commands run there" if running else "no command has run there",
            remediation="start one with agentd exec -d",
        )
    ids = ", ".join(process.id for process in found[-5:])
    raise InvalidInput(f"{len(found)} commands run there", remediation=f"name one: {ids}")


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser("attach", "Follow a command that runs already.", _EXAMPLES)
    parser.add_argument("--all", action="store_true", help="from the beginning of its output")
    parser.add_argument("-i", "--stdin", action="store_true", help="pass standard input")
    parser.add_argument("id", metavar="ID", help=remote.SANDBOX_HELP)
    words = remote.COMMAND_HELP % "only one that runs"
    parser.add_argument("process", metavar="PROCESS", nargs="?", help=words)
    return parser
