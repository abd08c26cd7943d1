"""What the fs capabilities share: paths, what the agent's refusals mean, time."""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agentd.capability.port import Inside
from agentd.capability.shape import integer, string
from agentd.model.capability import CallFailed
from agentd.model.characters import without_surrogates
from agentd.model.errors import InvalidInput, OperationFailed

MAX_FILE = 16 << 20
MAX_PATH = 4095  # PATH_MAX is 4096 with the NUL
MAX_LINKS = 40  # as the kernel has it: path_resolution(7)
PATH = string(1, MAX_PATH, description="absolute, or from the workspace")
TIMEOUT_MS = integer(1, 3_600_000, description="how long it may take at most")

_CODES = {
    errno.ENOENT: ("not_found", "check the path; fs.list.v1 shows what is there"),
    errno.EACCES: ("forbidden", "name a file that the sandbox's user may use"),
    errno.EPERM: ("forbidden", "name a file that the sandbox's user may use"),
    errno.EROFS: ("read_only", "name a file in the workspace or in /tmp"),
    errno.EISDIR: ("is_directory", "name a file"),
    errno.ENOTDIR: ("not_directory", "name a directory"),
    errno.EINVAL: ("not_a_file", "name a regular file"),
    errno.ELOOP: ("too_many_links", "name the file itself; links of /proc are not followed"),
    errno.ENAMETOOLONG: ("name_too_long", "shorten it"),
    errno.EFBIG: ("too_large", "list a folder in it"),
    errno.ENOSPC: ("disk_full", "write less, or give the sandbox more disk"),
    errno.EDQUOT: ("disk_full", "write less, or give the sandbox more disk"),
}


class CallDeadline:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raises CallFailed once it has passed."""
        if time.monotonic() >= self._end:
            raise CallFailed(
                "timeout",
                f"it took longer than {self._seconds:g} s",
                remediation="raise timeout_ms, or ask for less",
            )


def place(inside: Inside, path: str) -> str:
    """Absolute, as seen inside. Raises InvalidInput for what no file can be called."""
    if "\0" in path:
        raise InvalidInput("the path holds a NUL", remediation="leave it out")
    full = inside.path(path)
    if len(full.encode()) > MAX_PATH:
        raise InvalidInput(
            f"the path is over {MAX_PATH} bytes", remediation="use a path from the workspace"
        )
    return full


@contextmanager
def refusals() -> Iterator[None]:
    """The agent's refusals as CallFailed, each with its code."""
    try:
        yield
    except OperationFailed as error:
        code, fix = _CODES.get(error.errno, ("failed", ""))
        raise CallFailed(
            code,
            without_surrogates(error.message),
            cause=error.cause,
            remediation=fix or error.remediation,
        ) from None


def follow(inside: Inside, path: str) -> tuple[str, Any]:
    """Return where a path leads to by links in its last part, and the entry there.

    Raises OperationFailed. The sandbox may change it at once: no check of it protects anything.
    """
    first = path
    for _ in range(MAX_LINKS):
        entry = inside.files.stat(path)
        if entry.type != "link" or not entry.target:
            return path, entry
        path = f"{path.rstrip('/').rpartition('/')[0]}/{entry.target}"
        if entry.target.startswith("/"):
            path = entry.target
        if len(path.encode(errors="surrogatepass")) > MAX_PATH:
            break
    raise OperationFailed(f"{without_surrogates(first)}: its links lead nowhere", errno=errno.ELOOP)


def read(inside: Inside, path: str, offset: int, length: int, deadline: CallDeadline) -> bytes:
    """Read at most ``length`` bytes. Raises OperationFailed, CallFailed."""
    found = bytearray()
    pieces = inside.files.read_iter(path, offset, length)
    try:
        for piece in pieces:
            found += piece
            deadline.check()
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()  # a generator that has not ended holds a stream to the agent
    return bytes(found)
