"""Sinks over HTTP: JSON lines, and OTLP logs (https://opentelemetry.io/docs/specs/otlp)."""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import msgspec

from agentd.audit.record import decode
from agentd.audit.sinks.port import Rejected, Unsent
from agentd.model.errors import InvalidInput

if TYPE_CHECKING:
    import httpcore

_SECONDS = 10.0
_SAFE = ":/?#[]@!$&'()*+,;=%"  # RFC 3986, 2.2, and what is quoted already
_WAITS = ("connect", "read", "write", "pool")
_MAX_ANSWER = 64 << 10
_AGAIN = (408, 429)
_INFO = 9  # SeverityNumber


class HttpSink:
    """POST of batches as application/x-ndjson. 408, 429 and 5xx are tried again."""

    content_type = "application/x-ndjson"

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._url = url
        self._headers = {**(headers or {}), "content-type": self.content_type}
        self._pool: httpcore.ConnectionPool | None = None

    def send(self, lines: Sequence[bytes]) -> None:
        import httpcore

        if self._pool is None:
            self._pool = httpcore.ConnectionPool()
        try:
            url, credentials = _target(self._url)
            with self._pool.stream(
                "POST",
                url,
                headers=[*{**credentials, **self._headers}.items()],
                content=self.body(lines),
                extensions={"timeout": dict.fromkeys(_WAITS, _SECONDS)},
            ) as answer:
                self._judge(answer, len(lines))
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            httpcore.UnsupportedProtocol,
            ValueError,  # an address that is none
        ) as error:
            raise Unsent(str(error) or type(error).__name__) from error

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def body(self, lines: Sequence[bytes]) -> bytes:
        return b"".join(lines)

    def refused(self, answer: bytes) -> int:
        """Return how many of a batch that was taken were not."""
        return 0

    def _judge(self, answer: "httpcore.Response", count: int) -> None:
        """Raises Unsent, Rejected."""
        if answer.status in _AGAIN or answer.status >= 500:
            raise Unsent(f"status {answer.status}")
        if not 200 <= answer.status < 300:
            raise Rejected(f"status {answer.status}", count)
        body = b""
        for piece in answer.iter_stream():
            body += piece
            if len(body) > _MAX_ANSWER:
                return
        if refused := min(count, self.refused(body)):
            raise Rejected(f"its answer says that it has rejected {refused}", refused)


class OtlpSink(HttpSink):
    """To ``endpoint``/v1/logs; a record is the body of a log record, and its main attributes."""

    content_type = "application/json"

    def __init__(
        self,
        endpoint: str,
        headers: Mapping[str, str] | None = None,
        resource: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(endpoint.rstrip("/") + "/v1/logs", headers)
        self._resource = _attributes({"service.name": "agentd", **(resource or {})})

    def body(self, lines: Sequence[bytes]) -> bytes:
        logs = [_log_record(line) for line in lines]
        scope = {"scope": {"name": "agentd.audit"}, "logRecords": logs}
        resource = {"resource": {"attributes": self._resource}, "scopeLogs": [scope]}
        return msgspec.json.encode({"resourceLogs": [resource]})

    def refused(self, answer: bytes) -> int:
        try:
            found = json.loads(answer or b"{}")
            return max(0, int((found.get("partialSuccess") or {}).get("rejectedLogRecords", 0)))
        except (ValueError, TypeError, AttributeError):
            return 0


def check_address(url: str) -> None:
    """Raises InvalidInput for what nothing could be sent to. Who is told may not see a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
        fine = parts.scheme in ("http", "https") and parts.hostname and port != 0
    except ValueError:
        fine = False
    if not fine:
        raise InvalidInput(
            "this is no address that records could be sent to",
            remediation="write it as https://HOST/PATH or https://HOST:PORT/PATH, "
            "behind otlp: for OTLP",
        )


def _target(url: str) -> tuple[str, dict[str, str]]:
    """Return the address in ASCII, and its user and password as the header that carries them."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    plain = parts._replace(netloc=host.encode("idna").decode())
    found = quote(plain.geturl(), safe=_SAFE)
    if not at:
        return found, {}
    name, _, password = user.partition(":")
    basic = base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    return found, {"authorization": f"Basic {basic}"}


def _log_record(line: bytes) -> dict[str, Any]:
    record = decode(line)
    about = {
        "event.name": f"agentd.{record.kind}",
        "agentd.audit.seq": str(record.seq),
        "agentd.principal": record.principal,
        "agentd.request": record.request,
        "agentd.sandbox": record.sandbox,
        "agentd.capability": record.capability,
    }
    return {
        "timeUnixNano": str(_nanoseconds(record.time)),
        "severityNumber": _INFO,
        "severityText": "INFO",
        "body": {"stringValue": line.decode().rstrip("\n")},
        "attributes": _attributes({name: text for name, text in about.items() if text}),
    }


def _nanoseconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    seconds = int(moment.replace(microsecond=0).timestamp())
    return seconds * 10**9 + moment.microsecond * 1000


def _attributes(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": name, "value": {"stringValue": text}} for name, text in values.items()]
