"""What the operating system refuses, as an error of ours."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from agentd.model.errors import AgentdError


@contextmanager
def os_errors_as(kind: type[AgentdError], what: str, fix: str = "") -> Iterator[None]:
    """Raise ``kind`` for an OSError of the block: ``what`` failed, for the system's reason."""
    try:
        yield
    except OSError as error:
        raise kind(
            what, cause=error.strerror or str(error), remediation=fix or scarce(error)
        ) from error


_SCARCE = {
    errno.EMFILE: "close some descriptors, or raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close some files, or raise the machine's limit (sysctl fs.file-max)",
    errno.ENOMEM: "free memory, and try again",
    errno.ENOSPC: "make room, and try again",
}


def scarce(error: OSError) -> str:
    """Return what to do where the system is short of something; empty where it is not."""
    return _SCARCE.get(error.errno or 0, "")
