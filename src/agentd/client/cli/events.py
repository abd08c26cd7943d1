"""``agentd events``: what happens to the sandboxes of a daemon."""

import argparse
import sys
import time
from typing import TYPE_CHECKING

from agentd.client.cli import remote
from agentd.client.cli.parser import named

if TYPE_CHECKING:
    from agentd.model.events import EventView

_EXAMPLES = """\
  agentd events                     what is kept: some thousands, since the daemon came up
  agentd events -f                  and what comes, until Ctrl-C
  agentd events -f --json | jq -r 'select(.kind == "ended").sandbox'
  agentd events --after evt-19ac1f0e2b4-17
"""
_PAGE = 1000
_WAIT_SECONDS = 30


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    after = options.after or ""
    with remote.service(options) as service:
        while True:
            wait = _WAIT_SECONDS if options.follow else 0
            page = service.events.read(after, limit=_PAGE, wait=wait)
            if page.lost:
                print("agentd events: some events are lost", file=sys.stderr)
            for event in page.events:
                _show(event, options)
            sys.stdout.flush()
            after = page.next
            if not options.follow and len(page.events) < _PAGE:
                return 0


def _show(event: "EventView", options: argparse.Namespace) -> None:
    if options.json:
        print(remote.json_line(event).decode(), end="")
        return
    when = time.strftime("%H:%M:%S", time.localtime(event.time))
    about = " ".join(f"{name}={remote.safe(_text(value))}" for name, value in event.about.items())
    print(f"{when}  {event.kind:8}  {event.sandbox or '-':16}  {about}".rstrip())


def _text(value: object) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = remote.parser(
        "events",
        "Show what happens to the sandboxes that you may see: created, ended, renewed, paused, "
        "resumed, their processes, approvals, and what was refused.",
        _EXAMPLES,
    )
    parser.add_argument("-f", "--follow", action="store_true", help="wait for more")
    about = "those behind this event, as --json shows its id"
    parser.add_argument("--after", type=named, metavar="ID", help=about)
    return parser
