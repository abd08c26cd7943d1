"""The words of a command: how many bytes they are, and as many of them as are told of it."""

from sys import getsizeof

from agentd.model.api import ExecBody

_SHOWN = 4 << 10  # bytes


def size(body: ExecBody) -> int:
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
