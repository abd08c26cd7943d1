"""The files of cassettes that ``--net`` names, and what is told of them."""

import argparse
from typing import TYPE_CHECKING

from agentd.client.cli import output
from agentd.client.cli.remote import safe
from agentd.model.egress import cassette
from agentd.model.errors import InvalidInput
from agentd.model.units import counted

if TYPE_CHECKING:
    from agentd.client.cassettes import CassetteFiles
    from agentd.model.api import SandboxView
    from agentd.model.cassette import Cassette
    from agentd.model.network import Network

_SHOWN = 5


def of(options: argparse.Namespace) -> "CassetteFiles":
    """Take the files out of ``options.net``. Raises InvalidInput."""
    from agentd.client import cassettes

    net, files = cassettes.taken(options.net)
    if any(files):
        options.net = ",".join(net or ())
    return files


def of_a_run(options: argparse.Namespace) -> "CassetteFiles":
    """Take them as ``of``, where the sandbox ends with its command: nobody could ask for what it
    recorded, or put in what it replays."""
    files = of(options)
    word = cassette(text.strip() for text in (options.net or "").split(","))
    _check(word, files, f"name one, as {word}:tape.jsonl")
    return files


def check_made(view: "SandboxView", files: "CassetteFiles") -> None:
    """Check as ``of_a_run``, of what a template says, or a snapshot. Raises InvalidInput."""
    fix = "make the sandbox by agentd create, and see agentd net cassette"
    _check(cassette(view.egress), files, fix)


def _check(word: str, files: "CassetteFiles", fix: str) -> None:
    if word and not any(files):
        raise InvalidInput(
            f"network rule {word!r} has no file, and the sandbox ends with the command",
            remediation=fix,
        )


def save(files: "CassetteFiles", network: "Network", sandbox: str) -> None:
    """Write what was asked, where a file is named, and tell of it on standard error."""
    cassette = files.save(network, sandbox)
    if cassette is not None:
        output.say(told(cassette, files.record))


def told(cassette: "Cassette", path: str) -> str:
    """Return a line on what was recorded, and what was not."""
    count = len(cassette.exchanges)
    line = f"recorded {counted(count, 'exchange')} in {path}"
    lacking = [each for each in cassette.exchanges if each.unrecorded]
    shown = [f"{e.method} {e.host}{e.target[:200]} ({e.unrecorded})" for e in lacking[:_SHOWN]]
    if shown:
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        line += f"; without an answer: {', '.join(shown)}{more}"
    if cassette.left_out:
        line += f"; {cassette.left_out} more found no room"
    return safe(line)
