"""What may be wrong with a request before any door has seen it, and what nobody foresaw."""

import logging

from agentd.model.errors import AgentdError, InvalidInput

_log = logging.getLogger(__name__)


class Busy(AgentdError):
    """The server has no room for another connection."""

    code = "busy"


class HeadersTooLarge(InvalidInput):
    code = "headers_too_large"


class RequestTimeout(InvalidInput):
    code = "request_timeout"


class MethodNotAllowed(InvalidInput):
    code = "method_not_allowed"


class UnsupportedMediaType(InvalidInput):
    code = "unsupported_media_type"


class RangeNotSatisfiable(InvalidInput):
    code = "range_not_satisfiable"


class Draining(AgentdError):
    """The daemon takes nothing new, and ends what has no end of its own."""

    code = "draining"

    def __init__(self) -> None:
        fix = "come back when it has been started again"
        super().__init__("the daemon is about to end", remediation=fix)


class ShutDown(AgentdError):
    """The daemon ends, and waits no longer for what goes on."""

    code = "interrupted"

    def __init__(self) -> None:
        fix = "look whether it was done, and ask again when the daemon has been started again"
        super().__init__("its daemon shut down while it went on", remediation=fix)


def internal(error: Exception, what: str) -> AgentdError:
    """Return what an error that nobody foresaw is told as: the log has the rest."""
    _log.error("%s failed", what, exc_info=error)
    return AgentdError(
        "the daemon failed to answer this", remediation="its log says why; please report it"
    )
