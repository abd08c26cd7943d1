"""``agentd logs``: what a command wrote, while it runs and after."""

import argparse
import sys
from collections.abc import Iterator

from agentd.client.cli import remote
from agentd.model.characters import Whole

_EXAMPLES = """\
  agentd logs sbx-abcdefghijkl                       of its latest command
  agentd logs -f sbx-abcdefghijkl prc-0123456789abcdef
  agentd logs --stream stderr sbx-abcdefghijkl prc-0123456789abcdef > errors
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    with remote.service(options) as service:
        from agentd.client.cli.attach import only

        commands = service.commands
        process = options.process
        if process is None:
            process = only(commands.list(options.id), running=False)
        events = commands.events(options.id, process, follow=options.follow)
        # Bytes that go to a file or a pipe go there as they come.
        for name, value in _whole(events) if options.json or sys.stdout.isatty() else events:
            _write(name, value, options)
    return 0


def _whole(events: Iterator[tuple[str, object]]) -> Iterator[tuple[str, object]]:
    """The same events; no character is cut in two, and no line of JSON is base64 for that."""
    whole = Whole()
    for name, value in events:
        if isinstance(value, bytes):
            if passed := whole.feed(name, value):
                yield name, passed
            continue
        yield from whole.rest()  # what is lost, or the end: it is not completed any more
        yield name, value
    yield from whole.rest()


def _write(name: str, value: object, options: argparse.Namespace) -> None:
    from agentd.client.cli import output, streams

    about = value["stream"] if name == "lost" and isinstance(value, dict) else name
    if options.stream not in (None, about):
        return
    if options.json:
        _write_json(name, value)
    elif isinstance(value, bytes):
        streams.write_all(2 if name == "stderr" else 1, value)
    elif name == "lost" and isinstance(value, dict):
        from agentd.model.units import counted

        gone = int(value["to"]) - int(value["from"])
        what = counted(gone, f"byte of {value['stream']} is", f"bytes of {value['stream']} are")
        output.say(f"{what} gone", "logs")


def _write_json(name: str, value: object) -> None:
    from base64 import b64encode

    if isinstance(value, bytes):
        try:
            fields = {"stream": name, "data": value.decode(), "encoding": "utf-8"}
        except UnicodeDecodeError:
            fields = {"stream": name, "data": b64encode(value).decode(), "encoding": "base64"}
        remote.print_json(fields)
    else:
        remote.print_json({name: value})


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser("logs", "Print what a command wrote.", _EXAMPLES)
    parser.add_argument("-f", "--follow", action="store_true", help="wait for more, until its end")
    parser.add_argument("--stream", choices=("stdout", "stderr", "pty"), help="only this one")
    parser.add_argument("id", metavar="ID", help=remote.SANDBOX_HELP)
    words = remote.COMMAND_HELP % "latest"
    parser.add_argument("process", metavar="PROCESS", nargs="?", help=words)
    return parser
