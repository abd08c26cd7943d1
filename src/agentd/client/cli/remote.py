"""What every command that talks to a daemon has: its options, the daemon, its answers."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from agentd.client.cli.parser import Parser
from agentd.model.errors import AgentdError, InvalidInput

if TYPE_CHECKING:
    from agentd.client.http.service import HttpService
    from agentd.model.service import Secrets, Volumes

SANDBOX_HELP = "the id or name of a sandbox"
COMMAND_HELP = "the id or tag of a command (default: the %s)"
URL_HELP = (
    "the daemon, as unix:PATH or https://HOST:PORT (default: AGENTD_URL, or the usual socket)"
)


def parser(name: str, description: str, examples: str, usage: str | None = None) -> Parser:
    """Make a parser with --url and --json; AGENTD_API_KEY says who asks."""
    made = Parser(
        prog=f"agentd {name}", usage=usage, description=description, epilog=f"examples:\n{examples}"
    )
    daemon_options(made)
    return made


def daemon_options(parser: Parser) -> None:
    parser.add_argument("--url", metavar="URL", help=URL_HELP)
    json_option(parser)


def json_option(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def split(words: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Split them into what stands before the first ``--``, that itself, and what is behind it."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at : at + 1], words[at + 1 :]


def check_where(options: argparse.Namespace) -> None:
    """Raises InvalidInput where both this process and a daemon are named."""
    if options.embedded and options.url is not None:
        raise InvalidInput("--embedded and --url cannot go together", remediation="drop one")


@contextmanager
def service(options: argparse.Namespace) -> "Iterator[HttpService]":
    """Open the service of the daemon that is meant."""
    from agentd.client.http import address
    from agentd.client.http.service import alone

    with closing(alone(address.find(options.url))) as made:
        yield made


def remove(options: argparse.Namespace, noun: "Secrets | Volumes") -> int:
    """Delete what ``names`` say."""
    return to_each(options, options.names, noun.delete, removed)


def removed(done: dict[str, object]) -> dict[str, list[str]]:
    """Return what ``to_each`` tells of what is gone."""
    return {"removed": list(done)}


def to_each(
    options: argparse.Namespace,
    names: Iterable[str],
    do: Callable[[str], object],
    told: Callable[[dict[str, object]], object],
) -> int:
    """Do it once to each, those behind one that fails among them. What was done is told, as
    ``told`` makes it of names and answers, then each failure; the last is raised."""
    done: dict[str, object] = {}
    failed: dict[str, AgentdError] = {}
    for name in dict.fromkeys(names):
        try:
            done[name] = do(name)
        except AgentdError as error:
            failed[str(error)] = error
    tell(options, told(done))
    if not failed:
        return 0
    *others, last = failed.values()
    for other in others:
        print(f"{options.prog}: {safe(other)}", file=sys.stderr)
    raise last


def labels(texts: list[str]) -> dict[str, str]:
    """Parse them, ``KEY=VALUE`` each. Raises InvalidInput."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidInput(f"label {text!r} is not usable", remediation="write it as KEY=VALUE")
        if key in found:
            raise InvalidInput(f"label {key!r} is given twice", remediation="drop one of them")
        found[key] = value
    return found


def tell(options: argparse.Namespace, value: object, text: str = "") -> int:
    """Print ``value``, where JSON was asked for, or else the text, if there is any; return 0."""
    if options.json:
        print_json(value)
    elif text:
        print(text)
    return 0


def print_json(value: object) -> None:
    sys.stdout.buffer.write(json_line(value))
    sys.stdout.flush()


def json_line(value: object) -> bytes:
    """Write it on one line, with escapes for all that is not printable: a terminal obeys some of
    what JSON leaves as it is."""
    import msgspec

    try:
        data = msgspec.json.encode(value)
    except UnicodeEncodeError:  # of a name that is no UTF-8: escaped, as Python's own JSON has it
        import json

        data = json.dumps(msgspec.to_builtins(value)).encode()
    text = data.decode()
    if not text.isprintable():
        escapes = {ord(c): _json_escape(c) for c in set(text) if not c.isprintable()}
        data = text.translate(escapes).encode()
    return data + b"\n"


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def safe(text: object) -> str:
    """Escape control codes: what others chose must not reach the terminal as such."""
    line = str(text)
    return line if line.isprintable() else "".join(map(_visible, line))


def _visible(char: str) -> str:
    return char if char.isprintable() else ascii(char)[1:-1]
