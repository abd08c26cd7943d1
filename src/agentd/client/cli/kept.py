"""Where logs and receipts lie: a daemon's, or those of calls that were made without one."""

import argparse
import os

from agentd.client.cli import output
from agentd.client.cli.parser import named
from agentd.model.errors import InvalidInput

_DAEMONS, _OWN = "of the daemon", "of calls without a daemon"


def options(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--dir", type=named, metavar="DIR", help=f"the {what} in this directory")
    parser.add_argument(
        "--embedded", action="store_true", help=f"the {what} of calls without a daemon"
    )


def directories(given: argparse.Namespace, name: str) -> list[tuple[str, str]]:
    """Return (path, whose) of those that may hold it, the likeliest first: at least one."""
    from agentd.client import embedded

    if given.dir and given.embedded:
        raise InvalidInput("--dir and --embedded cannot go together", remediation="drop one")
    if given.dir:
        return [(given.dir, "")]
    own = os.path.join(embedded.own_directory(), name), _OWN
    if given.embedded:
        return [own]
    daemons = os.path.join(embedded.state_directory(), name), _DAEMONS
    return [place for place in (daemons, own) if os.path.isdir(place[0])] or [daemons]


def _holds(path: str) -> bool:
    """Whether anything is in it; where nobody may look, it is named all the same."""
    try:
        return bool(os.listdir(path))
    except PermissionError:
        return True
    except OSError:
        return False


def directory(given: argparse.Namespace, name: str, command: str) -> str:
    """Return the daemon's if there is one; say on stderr which, where nobody named it."""
    found = directories(given, name)
    # What a daemon left that never came up hides nothing.
    path, whose = next((place for place in found if _holds(place[0])), found[0])
    if whose and not given.embedded and os.path.isdir(path):
        both = len(found) > 1 and whose == _DAEMONS
        other = "; --embedded has that of calls without one" if both else ""
        output.say(f"{path}, {whose}{other}", command)
    return path
