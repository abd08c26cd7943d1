"""What a request for a command asks for, and what is told of its words; and the ways to begin it in
a sandbox's agent, or to find it again."""

import contextlib
import os
import signal
import time
from base64 import b64decode
from sys import getsizeof
from typing import TYPE_CHECKING, Protocol

from agentd.model import options
from agentd.model.api import ExecBody
from agentd.model.errors import AgentdError, InvalidInput
from agentd.model.running import HasEnded, SpawnFailed, StdinNotStreamed
from agentd.model.spec import ExecRequest

if TYPE_CHECKING:
    from agentd.model.running import Running
    from agentd.transport.guest import Guest


_MAX_STDIN = 64 << 20
_MAX_TAG = 256
_SHOWN = 4 << 10  # bytes


def new_id() -> str:
    """Make an id of the milliseconds now, then chance: records that come one after another lie on
    the same page of the store."""
    when = time.time_ns() // 1_000_000 & (1 << 40) - 1
    return f"prc-{when:010x}{os.urandom(5).hex()}"


def request_of(body: ExecBody, stdin: bool) -> ExecRequest:
    """Return the request that a body makes; ``stdin``: it has one. Raises InvalidInput."""
    tag = body.tag
    # Memory, the store and the feed of events keep it.
    if tag is not None and (len(tag) > _MAX_TAG or not tag.isprintable()):
        raise InvalidInput(
            f"tag {tag[:64]!r} is not usable",
            remediation=f"give printable text of at most {_MAX_TAG} characters",
        )
    wanted: options.ExecOptions = {
        "cwd": body.cwd,
        "env": body.env,
        "timeout": body.timeout,
        "limits": body.limits,
    }
    return options.exec_request(body.cmd, stdin=stdin, pty=body.pty, **wanted)


def check_waited(body: ExecBody) -> None:
    """Raises InvalidInput for a command that is waited for and whose input would never end: nobody
    knows its id meanwhile."""
    if body.stdin_open:
        raise InvalidInput(
            "stdin_open is for a command that is not waited for",
            remediation="send all of it as stdin, or give wait: false",
        )


def check_run(body: ExecBody) -> None:
    """Raises InvalidInput for a command that its sandbox, made for it, would not outlive."""
    if not body.wait:
        raise InvalidInput(
            "wait: false is for a command of a sandbox that goes on",
            remediation="leave it out; or create a sandbox, and exec in that",
        )
    check_waited(body)


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
        raise InvalidInput(
            "stdin is not encoded as it says",
            cause=str(error),
            remediation="encode it as stdin_encoding says, utf-8 or base64",
        ) from error
    if len(data) > _MAX_STDIN:
        raise InvalidInput(
            f"stdin has {len(data)} bytes, over {_MAX_STDIN}",
            remediation="write them to a file in the sandbox",
        )
    return data


def size_of_words(body: ExecBody) -> int:
    """Count the bytes in memory of a command's words and variables, which stay while it runs."""
    words = (body.cmd,) if isinstance(body.cmd, str) else body.cmd
    return sum(map(getsizeof, (*words, *body.env, *body.env.values())))


def shortened(argv: tuple[str, ...], cut: int = 0) -> tuple[tuple[str, ...], int]:
    """Return the first 4 KiB of a command's words, and how many bytes of them are left out, ``cut``
    before among them."""
    left, kept = _SHOWN, []
    for word in argv:
        data = word.encode("utf-8", "surrogatepass")
        if left > 0:
            kept.append(word if len(data) <= left else data[:left].decode("utf-8", "ignore"))
        cut += max(0, len(data) - max(0, left))
        left -= len(data)
    return tuple(kept), cut


class Begin(Protocol):
    """Begins a command; ``pid`` is set once it has started, though what follows may be untold."""

    pid: int | None
    place: tuple[int, int] | None

    def __call__(self, guest: "Guest") -> "Running": ...


class BeginStreamed:
    """Starts a command whose output and end come by a stream: it ends with the stream."""

    pid: int | None = None
    place: tuple[int, int] | None = None

    def __init__(self, request: ExecRequest, *, capture: bool = False) -> None:
        self._request = request
        self._capture = capture

    def __call__(self, guest: "Guest") -> "Running":
        try:
            return guest.start(self._request, capture=self._capture)
        except StdinNotStreamed:
            return guest.start_with_whole_stdin(self._request)


class BeginDetached:
    """Starts a command that outlives the daemon; its request's ``tag`` finds it again."""

    place: tuple[int, int] | None = None

    def __init__(self, request: ExecRequest) -> None:
        self._request = request
        self.pid: int | None = None

    def __call__(self, guest: "Guest") -> "Running":
        try:
            pid = guest.start_detached(self._request, hold=True)
        except SpawnFailed as failure:
            return HasEnded(failure.exit)
        self.pid = pid
        try:
            return guest.attach(pid, hold=True, asked=self._request)
        except BaseException:  # it is refused, and does not go on all the same
            with contextlib.suppress(AgentdError):
                guest.signal(pid, signal.SIGKILL)
            raise
