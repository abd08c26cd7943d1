"""The model's values as REST has them, and the other way."""

from base64 import b64decode, b64encode

from agentd.model import words
from agentd.model.api import ExecBody, ResultView
from agentd.model.errors import AgentdError
from agentd.model.result import Result
from agentd.model.spec import ExecRequest
from agentd.model.typed import like


def exec_body(request: ExecRequest, stdin: bytes | None = None, *, wait: bool) -> ExecBody:
    """Make a body; ``stdin`` is all of it; without it ``request.stdin`` leaves it open."""
    whole: dict[str, str | None] = {"stdin": None}
    if stdin is not None:
        whole = {"stdin": b64encode(stdin).decode(), "stdin_encoding": "base64"}
    opened = stdin is None and request.stdin
    return like(ExecBody, request, cmd=request.argv, stdin_open=opened, wait=wait, **whole)


def result(view: ResultView, stdout: bytes | None = None, stderr: bytes | None = None) -> Result:
    """Return the view's result, with its own output unless another is given."""
    return like(
        Result,
        view,
        cause=words.cause(view.cause, words.in_options),
        stdout=_bytes(view.stdout, view.encoding) if stdout is None else stdout,
        stderr=_bytes(view.stderr, view.encoding) if stderr is None else stderr,
    )


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "base64":
        return text.encode(errors="surrogateescape")
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise AgentdError("the daemon's answer is not base64") from None
