"""The doors on one listener: each request gets an id, and goes to the door whose path it is."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from agentd.ingest.web.door import Application, Mount
from agentd.ingest.web.errors import Draining, internal
from agentd.ingest.web.exchange import Exchange
from agentd.ingest.web.web import Web
from agentd.ingest.web.websocket import Socket
from agentd.model import context
from agentd.model.answer import Answer
from agentd.model.errors import AgentdError, InvalidInput

_TRACE = (b"traceparent", b"tracestate")
_MAX_HEADER = 512  # tracestate's own bound, W3C Trace Context §3.3.1.5


class Doors:
    """An ASGI application. Answers carry the request's id as ``x-request-id``; the log has it, too.

    A path that no door claims is answered by the first one.
    """

    def __init__(self, web: Web, mounts: Mapping[str, Mount]) -> None:
        """``mounts`` by the names of the doors. Raises InvalidInput where two claim one path."""
        for clash in _clashes(mounts):
            raise InvalidInput(clash, remediation="serve them on a [[listen]] of their own each")
        self._web = web
        self._first = next(iter(mounts.values()))
        # No claim is above another, so at most one of them fits.
        self._paths = [(path.rstrip("/"), one) for one in mounts.values() for path in one.paths]
        self._is_one = len(mounts) == 1
        self._hosts = [one.at_host for one in mounts.values() if one.at_host is not None]

    def error(self, error: AgentdError) -> Answer:
        """Write it in the first door's form: nothing tells yet which one is meant."""
        return self._first.door.error(error)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        mount = self._first if self._is_one else self._mount(scope["path"])
        host, trace = "", {}
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1")
            elif name in _TRACE and len(value) <= _MAX_HEADER:
                trace[name.decode()] = value.decode("latin-1")
        gone, link = context.Gone(), scope["state"]["link"]
        header = (b"x-request-id", context.begin(gone, trace).encode())
        started = False

        async def tell(message: Any) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        hosted = self._at_host(host)
        always = () if hosted is not None else mount.always
        link.on_lost(gone.set)
        try:
            if self._web.draining and scope["path"] not in always:
                await _refuse(mount, _draining(), scope, receive, tell)
            else:
                await (hosted or mount.application)(scope, receive, tell)
        except Exception as error:  # of an application that is no ``Routes``
            failure = internal(error, f"the request {scope['path'][:200]!r}")
            if started:
                link.cut()
            else:
                await _refuse(mount, failure, scope, receive, tell)
        finally:
            link.forget(gone.set)

    def _at_host(self, host: str) -> Application | None:
        """Return what answers at a host, where that is none of the doors' own."""
        for look in self._hosts:
            if (application := look(host)) is not None:
                return application
        return None

    def _mount(self, path: str) -> Mount:
        for claimed, mount in self._paths:
            if _is_below(path, claimed):
                return mount
        return self._first


def _is_below(path: str, claimed: str) -> bool:
    """Return whether ``path`` is the one that is claimed, or below it; both without a slash at the
    end."""
    return path == claimed or path.startswith(claimed + "/")


def _clashes(mounts: Mapping[str, Mount]) -> Iterator[str]:
    for (one, first), (other, second) in combinations(mounts.items(), 2):
        for mine in (path.rstrip("/") for path in first.paths):
            for theirs in (path.rstrip("/") for path in second.paths):
                if _is_below(mine, theirs) or _is_below(theirs, mine):
                    path = max(mine, theirs, key=len) or "/"
                    yield f"the doors {one!r} and {other!r} both answer {path} on one listener"


def _draining() -> Draining:
    return Draining(
        "the daemon is about to end", remediation="come back when it has been started again"
    )


async def _refuse(mount: Mount, error: AgentdError, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await Socket(mount.door, scope, receive, send).refuse(error)
    else:
        await Exchange(mount.door, scope, receive, send).answer(mount.door.error(error))
