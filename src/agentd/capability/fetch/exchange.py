"""One request and its response, by a connection of its own that is closed after it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import httpcore

from agentd.capability.fetch.address import Network
from agentd.capability.fetch.deadline import Deadline
from agentd.capability.fetch.url import Url
from agentd.capability.fetch.wire import Pinned
from agentd.model.capability import CallFailed
from agentd.model.install import DISTRIBUTION

if TYPE_CHECKING:
    import ssl

MAX_HEADERS = 200
_USER_AGENT = DISTRIBUTION


class HttpExchange:
    """A context manager. Raises CallFailed throughout."""

    def __init__(
        self,
        url: Url,
        addresses: Sequence[str],
        *,
        allowed: Sequence[Network],
        tls: "ssl.SSLContext",
        deadline: Deadline,
    ) -> None:
        self._url = url
        self._backend = Pinned(addresses, allowed, deadline)
        self._connection = httpcore.HTTPConnection(
            httpcore.Origin(url.scheme.encode(), url.host.encode(), url.port),
            ssl_context=tls,
            network_backend=self._backend,
        )
        self.status = 0
        self.headers: dict[str, str] = {}
        self._response: httpcore.Response | None = None

    @property
    def address(self) -> str:
        return self._backend.address

    def send(self, method: str, headers: Mapping[str, str], body: bytes) -> None:
        """Send it, and wait until the response's head is there: ``status`` and ``headers``."""
        url = httpcore.URL(
            scheme=self._url.scheme.encode(),
            host=self._url.host.encode(),
            port=self._url.port,
            target=self._url.target.encode(),
        )
        sent = {
            "host": self._url.authority,
            "user-agent": _USER_AGENT,
            "accept": "*/*",
            **headers,
            "accept-encoding": "gzip, deflate",
            "connection": "close",
        }
        if body or method in {"POST", "PUT", "PATCH"}:
            sent["content-length"] = str(len(body))
        raw = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
        try:
            request = httpcore.Request(method.encode(), url, headers=raw, content=body)
            self._response = self._connection.handle_request(request)
        except (httpcore.ProtocolError, httpcore.NetworkError) as error:
            raise _bad(str(error)) from None
        if self._backend.stream is not None:
            self._backend.stream.head_done = True
        self.status = self._response.status
        self.headers = _joined(self._response.headers)

    def body(self) -> Iterable[bytes]:
        """Return it as it came: transfer codings undone, content codings not."""
        assert self._response is not None  # noqa: S101  (after send)
        stream = self._response.stream
        assert isinstance(stream, Iterable)  # noqa: S101  (of the blocking kind)
        try:
            yield from stream
        except (httpcore.ProtocolError, httpcore.NetworkError) as error:
            raise _bad(str(error)) from None

    def close(self) -> None:
        self._connection.close()
        if self._backend.stream is not None:
            self._backend.stream.close()

    def __enter__(self) -> "HttpExchange":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _joined(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Join the headers by lower-case name: several of one with ", ", and cookies with line ends."""
    if len(headers) > MAX_HEADERS:
        raise _bad(f"it has over {MAX_HEADERS} headers")
    found: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        between = "\n" if name == "set-cookie" else ", "
        found[name] = found[name] + between + value if name in found else value
    return found


def _bad(cause: str) -> CallFailed:
    return CallFailed(
        "bad_response",
        "the server did not answer as HTTP wants it",
        cause="".join(c if c.isprintable() else " " for c in cause[:300]),
        remediation="check that the port is a web server's",
    )
