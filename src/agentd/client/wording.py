"""What is told in the words of the command line, said in those of the SDK."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from agentd.model import words
from agentd.model.enforcement import Enforcement, unheld, unlimited
from agentd.model.errors import AgentdError
from agentd.model.result import Result
from agentd.model.words import spelled

if TYPE_CHECKING:
    from agentd.model.api import CallView

_NAMES = frozenset(("url", "api_key"))  # besides those of all doors
_BOUND = "bound each process by ulimit -v"
_BOUND_HERE = "bound each process by limits=ExecLimits(address_space=BYTES) of run"

_told = False


def in_python(text: str) -> str:
    """Say ``raise memory=`` for ``raise --memory``, ``backend="linux"`` for ``--backend linux``."""
    return spelled(text.replace(_BOUND, _BOUND_HERE), _spell, _NAMES)


def _spell(name: str, value: str) -> str:
    return f'{name}="{value}"' if value else f"{name}="


@contextlib.contextmanager
def spoken() -> Iterator[None]:
    """Let errors that leave the block speak of the SDK's options."""
    try:
        yield
    except AgentdError as error:
        error.message, error.cause = in_python(error.message), in_python(error.cause)
        error.remediation = in_python(error.remediation)
        error.args = (error.message, *error.args[1:])
        raise


@contextlib.contextmanager
def found(where: object) -> Iterator[None]:
    """Add to what a daemon refuses that nobody named its address, and the way round it."""
    try:
        yield
    except AgentdError as error:
        error.add_note(f"asked of the daemon at {where}; embedded=True makes one of this process")
        raise


def of_result(result: Result) -> Result:
    cause = words.cause(result.cause, in_python)
    return result if cause is result.cause else msgspec.structs.replace(result, cause=cause)


def of_call(view: "CallView") -> "CallView":
    """Return it in the SDK's words: a daemon speaks of keys of JSON, this process of options."""
    return words.call(view, lambda text: in_python(words.in_options(text)))


def tell_unheld(enforcement: Enforcement) -> None:
    """Say on a terminal, once a process, which default limits nothing enforces."""
    global _told  # noqa: PLW0603  once a process
    if _told or sys.stderr is None or not sys.stderr.isatty():
        return
    if missing := unlimited(unheld(enforcement)):
        _told = True
        why = "Sandbox.enforcement tells why, ExecLimits bounds single processes"
        print(f"agentd: {missing}: {why}", file=sys.stderr)
