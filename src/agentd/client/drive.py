"""A whole command, from its stdin to its Result, on one thread."""

from agentd.client.ports import Running
from agentd.model.result import Result

_PIECE = 64 << 10
_BACKLOG = 256 << 10


def drive(running: Running, stdin: bytes, wake: int = -1) -> Result:
    """``wake`` readable kills it."""
    left = memoryview(stdin)
    feeding = bool(stdin)
    extra = () if wake < 0 else (wake,)
    while running.exit is None:
        if feeding and running.backlog < _BACKLOG:
            running.write(bytes(left[:_PIECE]))
            left = left[_PIECE:]
            if not left:
                running.close_stdin()
                feeding = False
            continue
        if running.step(None, extra)[1]:
            running.kill()
            break
    return running.finish()
