"""Sinks over HTTP: JSON lines, and OTLP logs (https://opentelemetry.io/docs/specs/otlp)."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.audit.record import decode
from agentd.audit.sinks.port import Unsent

if TYPE_CHECKING:
    import httpx

_SECONDS = 10.0
_MAX_ANSWER = 64 << 10
_AGAIN = (408, 429)
_INFO = 9  # SeverityNumber


class HttpSink:
    """POST of batches as application/x-ndjson. 408, 429 and 5xx are tried again."""

    content_type = "application/x-ndjson"

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._url = url
        self._headers = {**(headers or {}), "content-type": self.content_type}
        self._client: httpx.Client | None = None

    def send(self, lines: Sequence[bytes]) -> int:
        import httpx

        if self._client is None:
            # The environment's proxies and .netrc are not what the daemon was configured with.
            self._client = httpx.Client(timeout=_SECONDS, trust_env=False)
        try:
            with self._client.stream(
                "POST", self._url, content=self.body(lines), headers=self._headers
            ) as answer:
                return self._judge(answer, len(lines))
        except httpx.HTTPError as error:
            raise Unsent(str(error) or type(error).__name__) from error

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    def body(self, lines: Sequence[bytes]) -> bytes:
        return b"".join(lines)

    def refused(self, answer: bytes) -> int:
        """How many of a batch that was taken were not."""
        return 0

    def _judge(self, answer: "httpx.Response", count: int) -> int:
        if answer.status_code in _AGAIN or answer.status_code >= 500:
            raise Unsent(f"status {answer.status_code}")
        if not answer.is_success:
            return count
        body = b""
        for piece in answer.iter_bytes():
            body += piece
            if len(body) > _MAX_ANSWER:
                return 0
        return min(count, self.refused(body))


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
