"""What ``agentd run`` prints, and the exit code that it ends with."""

import os
import sys
from typing import TYPE_CHECKING, TextIO

from agentd.client.cli.remote import json_line, safe
from agentd.model.errors import AgentdError
from agentd.model.result import Cause, CauseCode, Result, as_texts

if TYPE_CHECKING:
    from agentd.client.ports import Snapshot

TIMED_OUT = 124
OWN_FAILURE = 125
_KILLED = 128 + 9
RED, GREEN, YELLOW = 31, 32, 33  # of ECMA-48


def exit_code(result: Result) -> int:
    """Return what shells do: the command's code, 128+n for a signal; 124 and 125 as timeout(1)."""
    if result.cause.code is CauseCode.TIMEOUT:
        return TIMED_OUT
    if result.signal is not None:
        return 128 + result.signal
    if result.exit_code is not None:
        return result.exit_code
    never = (CauseCode.BACKEND_LOST, CauseCode.INTERRUPTED)
    return OWN_FAILURE if result.cause.code in never else _KILLED


def as_json(
    result: Result,
    changes: tuple[str, ...] | None = None,
    saved: "Snapshot | None" = None,
    via: str | None = None,
    error: AgentdError | None = None,
) -> bytes:
    """Write one object on one line.

    ``changes`` is there where the workspace is copy-on-write, ``snapshot`` where one was saved, and
    ``error`` where one of these, or to apply the changes, failed once the command had ended;
    ``via`` is "embedded", or the address of the daemon that did it.
    """
    stdout, stderr, encoding = as_texts(result.stdout, result.stderr)
    fields: dict[str, object] = {
        "request_id": result.request_id,
        "status": result.status,
        "exit_code": result.exit_code,
        "signal": result.signal,
        "cause": result.cause,
        "stdout": stdout,
        "stderr": stderr,
        "encoding": encoding,
        "truncated": result.truncated,
        "usage": result.usage,
        "timing": result.timing,
        "sandbox": result.sandbox,
        "enforcement": result.enforcement,
    }
    if result.receipt:
        fields["receipt"] = result.receipt
    if changes is not None:
        fields["changes"] = changes
    if saved is not None:
        fields["snapshot"] = {"id": saved.id, "path": saved.path, "fidelity": saved.fidelity}
    if error is not None:
        fields["error"] = _cause(error)
    if via is not None:
        fields["via"] = via
    return json_line(fields)


def error_json(error: AgentdError) -> bytes:
    """Write the same object for a request that never ran: its cause is the error."""
    fields: dict[str, object] = {
        "request_id": None,
        "status": "error",
        "exit_code": None,
        "signal": None,
        "cause": _cause(error),
        "stdout": "",
        "stderr": "",
        "encoding": "utf-8",
        "truncated": False,
        "usage": None,
        "timing": None,
        "sandbox": None,
        "enforcement": {},
    }
    return json_line(fields)


def _cause(error: AgentdError) -> dict[str, object]:
    return {
        "code": error.code,
        "message": f"{error.message}: {error.cause}" if error.cause else error.message,
        "remediation": error.remediation,
        "infrastructure": error.infrastructure,
    }


def explain(cause: Cause, name: str = "run", *, truncated: bool = False) -> None:
    """Explain it on stderr, unless the command ended by itself: then its own output says enough, if
    it is whole."""
    if cause.code in (CauseCode.EXITED, CauseCode.SIGNALLED):
        if truncated:
            why = "its oldest is not kept, or what the command left behind was cut off as it wrote"
            say(f"output is missing: {why}", name)
        return
    hint = f" ({cause.remediation})" if cause.remediation else ""
    say(f"{cause.code}: {cause.message}{hint}", name)


def say(line: str, name: str = "run", *, colour: int | None = None) -> None:
    """Say it on stderr; ``colour`` is of the whole line, on a terminal."""
    text = f"agentd {name}: {safe(line)}"
    print(coloured(text, colour, sys.stderr), file=sys.stderr, flush=True)


def coloured(text: str, colour: int | None, to: TextIO) -> str:
    """Colour it on a terminal that may have colours. rich takes long to import."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    if colour is None or plain or not to.isatty():
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def list_changes(changes: tuple[str, ...], applied: bool) -> None:
    if not changes:
        say("no changes in the workspace")
        return
    fate = "written to the host" if applied else "not written to the host; --apply does that"
    say(f"{len(changes)} change{'s' if len(changes) > 1 else ''} in the workspace, {fate}")
    for line in changes:
        # A file's name is the sandbox's choice: it must not reach the terminal as control codes.
        print(f"  {safe(line)}", file=sys.stderr)
    sys.stderr.flush()
