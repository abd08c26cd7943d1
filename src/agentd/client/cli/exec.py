"""``agentd exec``: a command in a daemon's sandbox."""

import argparse
import signal
from typing import TYPE_CHECKING

from agentd.client.cli import remote
from agentd.client.cli.command import env_options
from agentd.client.cli.interrupts import Interrupted, Interrupts
from agentd.model.errors import InvalidInput

if TYPE_CHECKING:
    from agentd.model.spec import ExecRequest

_EXAMPLES = """\
  agentd exec sbx-abcdefghijkl -- python3 -c 'print(6*7)'
  tar c src | agentd exec -i sbx-abcdefghijkl -- tar x
  agentd exec -t sbx-abcdefghijkl -- bash
  agentd exec -d sbx-abcdefghijkl -- ./server        prints the process's id, for logs and attach
  agentd exec --json sbx-abcdefghijkl -- sh -c 'echo out; exit 3'

exit codes: as of agentd run. Ctrl-C ends the command; with -t Ctrl-P Ctrl-Q leaves it running.
"""


def main(words: list[str]) -> int:
    return execute(_parse(words))


def execute(options: argparse.Namespace) -> int:
    """Run the command that the options say, for ``agentd shell``, too; return the exit code."""
    from agentd.client.cli import command

    request = command.request(options, options.timeout)
    with Interrupts(of_daemon=True) as interrupts:
        try:
            return _run(options, request, interrupts)
        except Interrupted as interrupted:
            return 128 + interrupted.number


def _run(options: argparse.Namespace, request: "ExecRequest", interrupts: Interrupts) -> int:
    from agentd.client.cli import output, streams, waiting
    from agentd.client.cli.follow import Follow

    with remote.service(options) as service:
        if options.detach:
            from agentd.client.http import wire

            body = wire.exec_body(request, wait=False)
            with interrupts.heeded():
                view = service.commands.start(options.id, body, cancel=interrupts.ended)
                if interrupts.pending is not None:  # nobody is told its name
                    service.commands.signal(options.id, view.id, signal.SIGKILL)
                    interrupts.check()
            return remote.tell(options, view, view.id)
        with interrupts.heeded():
            begun = service.commands.begin(
                options.id, request, capture=options.json, cancel=interrupts.ended
            )
        with begun as running:
            follow = Follow(
                running,
                interrupts,
                stdin=options.stdin,
                tty=options.tty,
                leaves=True,
                ticks=waiting.ticks(service, options, options.name),
            )
            if not follow.run():
                running.detach()
                output.say(f"process {running.id} goes on", options.name)
                return 0
            result = running.finish()
    if options.json:
        streams.write_all(1, output.as_json(result))
    else:
        output.explain(result.cause, options.name, truncated=result.truncated)
        denied = getattr(result.usage.network, "denied", 0)  # there is none without rules
        if result.status != "ok" and denied:
            from agentd.model.units import counted

            many = counted(denied, "name or connection", "names or connections")
            told = f"the network has refused this sandbox {many} so far"
            output.say(f"{told}; agentd net ls {options.id} lists them", options.name)
    return output.exit_code(result)


def _parse(words: list[str]) -> argparse.Namespace:
    head, dashes, tail = remote.split(words)
    options = _parser().parse_args(head)
    if options.command[:1] and options.command[0].startswith("-"):
        raise InvalidInput(
            f"{options.command[0]} stands behind the sandbox's id, where its command is",
            remediation=f"write agentd exec {options.command[0]} ... {options.id} -- ls",
        )
    # ``exec ID git checkout -- x``: the command began before the dashes, so they belong to it.
    options.command = options.command + dashes + tail if options.command else tail
    if not options.command:
        raise InvalidInput(
            "no command given", remediation="write it after --: agentd exec ID -- ls"
        )
    if options.tty and (options.json or options.detach):
        raise InvalidInput(
            "-t goes with neither --json nor -d", remediation="drop -t, or the other"
        )
    if options.detach and options.stdin:
        raise InvalidInput("-d and -i cannot go together", remediation="drop one")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser(
        "exec",
        "Run a command in a sandbox that a daemon keeps.",
        _EXAMPLES,
        usage="agentd exec [options] ID -- COMMAND [ARG...]",
    )
    command_options(parser)
    parser.add_argument("-i", "--stdin", action="store_true", help="pass standard input")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal (implies -i)")
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait for it")
    parser.add_argument("id", metavar="ID", help=remote.SANDBOX_HELP)
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(name="exec")
    return parser


def command_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-C", "--cwd", metavar="DIR", help="its working directory")
    env_options(parser)
    parser.add_argument("--timeout", metavar="TIME", help="as 250ms, 2s, 10m")
