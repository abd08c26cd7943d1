"""``python.exec.v1`` in the SDK's words."""

from typing import TYPE_CHECKING, Any

import msgspec

from agentd.client import arguments
from agentd.model import typed
from agentd.model.options import Time
from agentd.model.units import parse_duration

if TYPE_CHECKING:
    from agentd.model.api import CallView

PYTHON = "python.exec.v1"


class CodeError(msgspec.Struct, frozen=True):
    """An exception that the code raised: its class's name, its text, and the traceback."""

    name: str
    value: str
    traceback: str


class CodeResult(msgspec.Struct, frozen=True):
    """What came of code: ``status`` is "ok", "error", "interrupted" or "timeout".

    ``result`` is the value of its last line, and ``displays`` what it showed, figures too: each by
    media type, as "text/plain" or "image/png" (base64). ``reset``: the state was lost.
    """

    status: str
    result: dict[str, str] | None = None
    displays: tuple[dict[str, str], ...] = ()
    stdout: str = ""
    stderr: str = ""
    error: CodeError | None = None
    execution_count: int | None = None
    kernel: str | None = None
    reset: bool = False
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """Return whether it ran to its end."""
        return self.status == "ok"

    @property
    def text(self) -> str:
        """Return the value of its last line as text; empty where that had none."""
        return (self.result or {}).get("text/plain", "")


def code_parameters(code: str, context: str, timeout: Time, *, reset: bool) -> dict[str, Any]:
    """Return the parameters of a call. Raises InvalidInput."""
    arguments.text(code, "code")
    arguments.text(context, "context")
    arguments.flags(reset=reset)
    asked: dict[str, Any] = {"code": code, "context": context, "reset": reset}
    if timeout is not None:
        asked["timeout_ms"] = max(1, round(parse_duration(timeout, "timeout") * 1000))
    return asked


def code_result(view: "CallView") -> CodeResult:
    found: CodeResult = typed.convert(view.value, CodeResult)
    return found
