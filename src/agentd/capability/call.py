"""One call: its parameters, its time, what it sends ahead; and how it is carried out."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from agentd.capability.port import Capability, Inside
from agentd.model.capability import About, CallFailed, Outcome
from agentd.model.errors import AgentdError, InvalidInput

MAX_TIMEOUT = 3600.0  # seconds, whatever a schema lets through
MAX_EMITTED = 64 << 20  # bytes of one call, all kinds together
MAX_PIECE = 1 << 20
_KIND = re.compile(r"[a-z][a-z0-9_.]{0,31}")

Emit = Callable[[str, bytes], None]


def _nowhere(kind: str, data: bytes) -> None:
    """Drop it: nobody follows."""


class CallContext:
    """A port.Call. ``parameters`` are checked already (``schema.check``)."""

    def __init__(
        self,
        parameters: dict[str, Any],
        *,
        request_id: str,
        timeout: float,
        emit: Emit = _nowhere,
        max_emitted: int = MAX_EMITTED,
    ) -> None:
        self.parameters = parameters
        self.request_id = request_id
        self.timeout = timeout
        self._emit = emit
        self._room = max_emitted

    @classmethod
    def of(
        cls,
        about: About,
        parameters: dict[str, Any],
        *,
        request_id: str,
        emit: Emit = _nowhere,
        most: float | None = None,
    ) -> "CallContext":
        """Make one whose time is its parameter ``timeout_ms``, or what the capability says.

        ``most`` is what a policy lets it have, in seconds. An AgentdError that ``emit`` raises
        ends the call with it.
        """
        time = timeout(about, parameters, most)
        return cls(parameters, request_id=request_id, timeout=time, emit=emit)

    def emit(self, kind: str, data: bytes) -> None:
        """Emit it in pieces of at most 1 MiB. Raises CallFailed over 64 MiB in all."""
        if not _KIND.fullmatch(kind):
            raise InvalidInput(f"{kind[:50]!r} is no kind of output", remediation="use a-z, 0-9, _")
        self._room -= len(data)
        if self._room < 0:
            raise CallFailed(
                "too_large",
                "the call sent more than it may before its end",
                remediation="write large output to a file in the workspace",
            )
        for start in range(0, len(data), MAX_PIECE):
            self._emit(kind, bytes(data[start : start + MAX_PIECE]))


def timeout(about: About, parameters: Mapping[str, Any], most: float | None = None) -> float:
    """Seconds that a call may take."""
    asked = parameters.get("timeout_ms")
    seconds = about.bounds.timeout if asked is None else asked / 1000
    return min(seconds, MAX_TIMEOUT, MAX_TIMEOUT if most is None else most)


def perform(capability: Capability, call: CallContext, inside: Inside) -> Outcome:
    """Return its outcome, within its bounds. Raises AgentdError and nothing else."""
    about = capability.about
    try:
        outcome = capability.run(call, inside)
    except AgentdError:
        raise
    except Exception as error:
        raise AgentdError(
            f"capability {about.name} failed",
            cause=f"{type(error).__name__}: {str(error)[:500]}",
            remediation="this is a defect of the capability: report it to who wrote it",
        ) from error
    if not isinstance(outcome, Outcome):
        raise _no_answer(about, f"it returned a {type(outcome).__name__}")
    try:
        size = len(msgspec.json.encode(outcome.value))
    except (TypeError, ValueError, RecursionError, msgspec.EncodeError) as error:
        raise _no_answer(about, str(error)[:500]) from error
    if size > about.bounds.output:
        raise CallFailed(
            "too_large",
            f"the answer of {about.name} is {size} bytes of JSON, over {about.bounds.output}",
            remediation="ask for less at once",
        )
    return outcome


def _no_answer(about: About, cause: str) -> AgentdError:
    return AgentdError(
        f"capability {about.name} gave no answer that can be sent",
        cause=cause,
        remediation="this is a defect of the capability: report it to who wrote it",
    )
