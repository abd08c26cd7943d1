"""The host half of the scripts in ``capability/inside``: Python that runs in the sandbox.

One JSON object goes in by its stdin and one comes out by its stdout. What comes out is the
sandbox's word: it is bounded, and decoded by a decoder that says its shape.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from agentd.capability.bundle import bundled
from agentd.capability.port import Inside
from agentd.model import typed
from agentd.model.capability import CallFailed
from agentd.model.errors import AgentdError, BackendLost, InvalidInput
from agentd.model.result import Cause, CauseCode, Result
from agentd.model.spec import ExecRequest

T = TypeVar("T")
MAX_STDIN = 16 << 20
MAX_OUTPUT = 32 << 20
MAX_VALUES = 1 << 20  # of an answer: arrays, objects and what is in them
# One argument of execve(2) is at most 128 KiB (MAX_ARG_STRLEN).
MAX_SOURCE = 100 << 10
RAISE_TIMEOUT = "raise timeout_ms, or the sandbox's timeout where that is less; or {}"
_MAX_TEXT = 500
_CODE = re.compile(r"[a-z][a-z0-9_]{0,39}")


class _Error(msgspec.Struct):
    code: str
    message: str
    remediation: str = ""


class _Answer(msgspec.Struct):
    error: _Error | None = None


_ANSWER = typed.decoder(_Answer)
_CAUSES = {
    CauseCode.TIMEOUT: "timeout",
    CauseCode.OUTPUT_LIMIT: "too_large",
    CauseCode.CANCELLED: "cancelled",
    CauseCode.OOM: "out_of_memory",
    CauseCode.PIDS_LIMIT: "too_many_processes",
    CauseCode.LEASE_EXPIRED: "lease_expired",
}


def run(
    inside: Inside,
    source_name: str,
    parameters: Mapping[str, Any],
    decoder: "msgspec.json.Decoder[T]",
    timeout: float,
    *,
    max_stdin: int = MAX_STDIN,
    max_output: int = MAX_OUTPUT,
    emit: Callable[[str, bytes], None] | None = None,
    said: Callable[[bytes], None] | None = None,
    env: Mapping[str, str] | None = None,
) -> T:
    """``inside/SOURCE_NAME.py`` with ``parameters`` on its stdin; its answer by ``decoder``.

    ``timeout`` in seconds, ``max_stdin`` and ``max_output`` in bytes of JSON. What it wrote on
    stderr goes to ``emit`` as it comes, and whole to ``said`` once it has ended. A script that
    answers ``{"error": {"code", "message", "remediation"}}`` ends in CallFailed with that code;
    others are "no_python", "timeout", "too_large", "out_of_memory" and "script_failed". Raises
    BackendLost, and an AgentdError "interrupted" where the daemon shuts down.
    """
    stdin = msgspec.json.encode(parameters)
    if len(stdin) > max_stdin:
        raise InvalidInput(
            f"the parameters are {len(stdin)} bytes of JSON, over {max_stdin}",
            remediation="send less at once",
        )
    request = ExecRequest(
        # -I: no variable and no file of the sandbox's changes which modules these are.
        argv=("python3", "-I", "-S", "-c", source(source_name)),
        cwd=inside.workspace,
        env=dict(env or {}),
        timeout=timeout,
        output_limit=max_output,
    )
    result = inside.execute(request, stdin, emit)
    answer = _answer(result, decoder)
    if said is not None:
        said(result.stderr)
    return answer


@functools.cache
def source(name: str) -> str:
    """Return the text of a script of ours, with its parts."""
    text = bundled(name)
    if len(text.encode()) > MAX_SOURCE:
        raise ValueError(f"inside/{name}.py is over {MAX_SOURCE} bytes")
    return text


def _answer(result: Result, decoder: "msgspec.json.Decoder[T]") -> T:
    if result.cause.code is not CauseCode.EXITED or result.exit_code != 0:
        raise _failure(result)
    if typed.has_more_values(result.stdout, MAX_VALUES):
        raise CallFailed(
            "too_large",
            f"the sandbox's Python answered with over {MAX_VALUES} values",
            remediation="ask for less at once",
        )
    try:
        error = _ANSWER.decode(result.stdout).error
        if error is None:
            return decoder.decode(result.stdout)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as wrong:
        raise CallFailed(
            "script_failed",
            "the sandbox's Python did not answer as it should",
            cause=safe(str(wrong)),
            remediation="look at what python3 is in the sandbox",
        ) from None
    code = error.code if _CODE.fullmatch(error.code) else "script_failed"
    raise CallFailed(code, safe(error.message), remediation=safe(error.remediation))


def _failure(result: Result) -> AgentdError:
    cause = result.cause
    if cause.code is CauseCode.INTERRUPTED:  # its sandbox lives
        error = AgentdError(cause.message, remediation=cause.remediation)
        error.code = str(cause.code)
        return error
    if cause.infrastructure:
        return BackendLost(cause.message, remediation=cause.remediation)
    if cause.code is CauseCode.SPAWN_FAILED:
        return _not_started(result, cause)
    if cause.code is CauseCode.TIMEOUT:
        return CallFailed(
            "timeout",
            # The sandbox's own time, or the policy's, may be less than what was asked for.
            f"it {cause.message} and was ended",
            remediation=RAISE_TIMEOUT.format("ask for less"),
        )
    last = result.stderr[-2000:].decode(errors="replace").strip().rpartition("\n")[2]
    return CallFailed(
        _CAUSES.get(cause.code, "script_failed"),
        f"the sandbox's Python ended: {safe(cause.message)}",
        cause=safe(last),
        remediation=cause.remediation,
    )


def _not_started(result: Result, cause: Cause) -> CallFailed:
    if result.exit_code == 127 and not cause.message.endswith("(stage cwd)"):
        return CallFailed(
            "no_python",
            "there is no python3 in the sandbox",
            cause=safe(cause.message),
            remediation="use an image or a wall that has Python 3.9 or later on its PATH",
        )
    return CallFailed(
        "script_failed", "python3 could not be started in the sandbox", cause=safe(cause.message)
    )


def safe(text: str) -> str:
    """Return what the sandbox wrote, for a message: short and without control codes."""
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_TEXT])
