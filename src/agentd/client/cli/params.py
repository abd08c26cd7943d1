"""Parameters of a capability on the command line: ``--params``, as a JSON object."""

import argparse
import sys
from typing import Any

from agentd.client.cli import output, streams
from agentd.model.errors import InvalidInput
from agentd.model.system import os_errors_as

OPTION = "--params"
# What it was called; alone it is, as everywhere, to print JSON.
_OLD = "--json"
_MAX_INPUT = 64 << 20
_BEGIN = ("{", "[", '"', "@")


def add(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument(OPTION, metavar="PARAMETERS", help=about)
    parser.add_argument("--json", action="store_true", help="print all of the answer as JSON")
    parser.add_argument("--as-json", dest="json", action="store_true", help=argparse.SUPPRESS)


def renamed(words: list[str], command: str) -> tuple[list[str], str]:
    """Return ``words`` with the old name replaced, where parameters follow it, and the name that
    was written. A person at a terminal is told; what is scripted goes on as it was."""
    found = list(words)
    for at, word in enumerate(words):
        value = words[at + 1] if word == _OLD and at + 1 < len(words) else ""
        if word.startswith(f"{_OLD}="):
            found[at] = f"{OPTION}={word.removeprefix(f'{_OLD}=')}"
        elif value.lstrip().startswith(_BEGIN):
            found[at] = OPTION
    if found == words:
        return words, OPTION
    if sys.stderr is not None and sys.stderr.isatty():
        said = f"{_OLD} PARAMETERS is {OPTION} PARAMETERS now; {_OLD} alone prints JSON"
        output.say(said, command, colour=output.YELLOW)
    return found, _OLD


def text(given: str | None) -> bytes:
    """Return what ``--params`` says: itself, or what is in @FILE. Raises InvalidInput."""
    if given is None:
        return b"{}"
    if given == "@":
        raise InvalidInput(f"{OPTION} @ names no file", remediation="write it as @FILE")
    return read(given[1:]) if given.startswith("@") else given.encode(errors="surrogateescape")


def read(path: str, fix: str = "name a file that you can read", most: int = _MAX_INPUT) -> bytes:
    """Read a file, or standard input for ``-``: at most so many bytes. Raises InvalidInput."""
    with os_errors_as(InvalidInput, f"cannot read {path}", fix):
        if path == "-":
            return streams.opened_input().read(most)
        with open(path, "rb") as file:
            return file.read(most)


def parsed(raw: bytes, what: str) -> dict[str, Any]:
    """Parse an object; ``what``, where it stands, is named by errors. Raises InvalidInput."""
    found = strict(raw, what)
    if not isinstance(found, dict):
        raise InvalidInput(f"{what} is no JSON object", remediation='write it as {"path": "a.txt"}')
    return found


def strict(raw: bytes, what: str) -> Any:
    """Parse a JSON value. Raises InvalidInput."""
    from agentd.model.canonical import loads_strict

    try:
        return loads_strict(raw)
    except InvalidInput as error:
        error.message = f"{what}: {error.message}"
        raise
