"""What a request for a command asks for, out of its body."""

import os
import time
from base64 import b64decode

from agentd.model import options
from agentd.model.api import ExecBody
from agentd.model.errors import InvalidInput
from agentd.model.spec import ExecRequest

_MAX_STDIN = 64 << 20
_MAX_TAG = 256


def new_id() -> str:
    """The milliseconds it was made in, then chance: records that come one after another lie on the
    same page of the store."""
    when = time.time_ns() // 1_000_000 & (1 << 40) - 1
    return f"prc-{when:010x}{os.urandom(5).hex()}"


def request_of(body: ExecBody, stdin: bool) -> ExecRequest:
    """Raises InvalidInput."""
    _check_tag(body.tag)
    wanted: options.ExecOptions = {
        "cwd": body.cwd,
        "env": body.env,
        "timeout": body.timeout,
        "limits": body.limits,
    }
    return options.exec_request(body.cmd, stdin=stdin, pty=body.pty, **wanted)


def _check_tag(tag: str | None) -> None:
    """Bound what memory, the store and the feed of events keep. Raises InvalidInput."""
    if tag is not None and (len(tag) > _MAX_TAG or not tag.isprintable()):
        raise InvalidInput(
            f"tag {tag[:64]!r} is not usable",
            remediation=f"give printable text of at most {_MAX_TAG} characters",
        )


def stdin_of(body: ExecBody) -> bytes:
    """Return what it reads at first. Raises InvalidInput."""
    if body.stdin is None:
        return b""
    try:
        if body.stdin_encoding == "base64":
            data = b64decode(body.stdin, validate=True)
        elif body.stdin_encoding == "utf-8":
            data = body.stdin.encode()
        else:
            raise ValueError("it is neither utf-8 nor base64")
    except ValueError as error:
        raise InvalidInput("stdin is not encoded as it says", cause=str(error)) from error
    if len(data) > _MAX_STDIN:
        raise InvalidInput(
            f"stdin has {len(data)} bytes, over {_MAX_STDIN}",
            remediation="write them to a file in the sandbox",
        )
    return data
