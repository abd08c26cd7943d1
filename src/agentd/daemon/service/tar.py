"""Trees of a sandbox as tar, made and unpacked by the tar inside it: behind the same wall."""

import os
from collections.abc import Iterable, Iterator

from agentd.daemon.execution import Execution
from agentd.daemon.pipeline import begin
from agentd.daemon.service.live import Live
from agentd.model.errors import OperationFailed
from agentd.model.result import Result
from agentd.model.spec import ExecRequest

_PIECE = 256 << 10


def read(live: Live, path: str) -> Iterator[bytes]:
    """A tar of ``path``, whose members are named from its last part on."""
    live.require_running("read a tree")
    parent, name = os.path.split(path.rstrip("/") or "/")
    argv = ("tar", "-C", parent or "/", "-cf", "-", "--", name or ".")
    errors = bytearray()
    with begin(live.handle, ExecRequest(argv)) as execution:
        for stream, data in execution.chunks():
            if stream == "stdout":
                yield data
            else:
                errors += data[: 4096 - len(errors)]
        _check(execution.finish(), bytes(errors), path)


def write(live: Live, path: str, data: Iterable[bytes]) -> None:
    """Unpack a tar into the directory ``path``. Raises OperationFailed with tar's own words."""
    live.require_running("write a tree")
    argv = ("tar", "-C", path, "-xf", "-")
    request = ExecRequest(argv, stdin=True)
    with begin(live.handle, request, capture=True) as execution:
        for piece in data:
            for at in range(0, len(piece), _PIECE):
                execution.write(piece[at : at + _PIECE])
                _catch_up(execution)
            if execution.exit is not None:
                break
        execution.close_stdin()
        result = execution.finish()
    _check(result, result.stderr, path)


def _catch_up(execution: Execution) -> None:
    """Until the command has taken most of its input: the sender is held up by it."""
    while execution.running.backlog > _PIECE and execution.exit is None:
        execution.step(1.0)


def _check(result: Result, errors: bytes, path: str) -> None:
    if result.status != "ok":
        words = errors.decode(errors="replace").strip() or result.cause.message
        raise OperationFailed(f"tar of {path} failed", cause=words[-500:])
