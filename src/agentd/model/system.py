"""What the operating system refuses, as an error of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from agentd.model.errors import AgentdError


@contextmanager
def os_errors_as(kind: type[AgentdError], what: str, fix: str = "") -> Iterator[None]:
    """Raise ``kind`` for an OSError of the block: ``what`` failed, for the system's reason."""
    try:
        yield
    except OSError as error:
        raise kind(what, cause=error.strerror or str(error), remediation=fix) from error
