"""The driver of agentd's own door, REST; also an example of a driver that claims everything."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from agentd.testing.doors.driver import TELLS, Driver, Ended, Refusal
from agentd.testing.doors.http import Answer, ask, hang_up


class Rest(Driver):
    """``docs/api.md`` over HTTP/1.1."""

    door = "rest"
    tells = frozenset(TELLS)
    timeouts = True
    once = frozenset(("run", "call", "write_file", "create"))
    most_stdin = 700_000  # base64 in a body of 1 MiB
    hanging_up = "ends"

    def sandboxes(self, key: str | None) -> Sequence[str]:
        found = self._json("GET", "/v1/sandboxes?limit=500", key)
        return [one["id"] for one in found["sandboxes"]]

    def create(self, key: str | None, *, once: str = "") -> str:
        made: str = self._json("POST", "/v1/sandboxes", key, {}, once)["id"]
        return made

    def kill(self, key: str | None, sandbox: str) -> None:
        self._ask("DELETE", f"/v1/sandboxes/{sandbox}", key)

    def run(
        self,
        key: str | None,
        sandbox: str,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
        once: str = "",
    ) -> Ended:
        body = {"cmd": argv, "timeout": timeout, "stdin_encoding": "base64"}
        body["stdin"] = base64.b64encode(stdin).decode()
        return _ended(self._json("POST", f"/v1/sandboxes/{sandbox}/exec", key, body, once))

    def run_and_hang_up(
        self, key: str | None, sandbox: str, argv: Sequence[str], when: Callable[[], None]
    ) -> None:
        body = json.dumps({"cmd": argv}).encode()
        path = f"/v1/sandboxes/{sandbox}/exec"
        hang_up(self.address, "POST", path, body, _headers(key, json=True), when)

    def start(self, key: str | None, sandbox: str, argv: Sequence[str]) -> str:
        body = {"cmd": argv, "wait": False, "stdin_open": True}
        started: str = self._json("POST", f"/v1/sandboxes/{sandbox}/exec", key, body)["id"]
        return started

    def output(
        self, key: str | None, sandbox: str, process: str, stream: str, cursor: int
    ) -> bytes:
        query = urlencode({"stream": stream, "from": cursor, "follow": "true"})
        path = f"/v1/sandboxes/{sandbox}/processes/{process}/output?{query}"
        return self._ask("GET", path, key).body

    def write(self, key: str | None, sandbox: str, process: str, data: bytes, *, eof: bool) -> None:
        path = f"/v1/sandboxes/{sandbox}/processes/{process}/stdin?eof={'true' if eof else 'false'}"
        self._ask("POST", path, key, data)

    def signal(self, key: str | None, sandbox: str, process: str, number: int) -> None:
        path = f"/v1/sandboxes/{sandbox}/processes/{process}/signal"
        self._json("POST", path, key, {"signal": number})

    def result(self, key: str | None, sandbox: str, process: str) -> Ended | None:
        found = self._json("GET", f"/v1/sandboxes/{sandbox}/processes/{process}", key)
        return None if found["result"] is None else _ended(found["result"])

    def read_file(self, key: str | None, sandbox: str, path: str) -> bytes:
        return self._ask(
            "GET", f"/v1/sandboxes/{sandbox}/files?{urlencode({'path': path})}", key
        ).body

    def write_file(
        self, key: str | None, sandbox: str, path: str, data: bytes, *, once: str = ""
    ) -> None:
        where = f"/v1/sandboxes/{sandbox}/files?{urlencode({'path': path})}"
        self._ask("PUT", where, key, data, once)

    def list_files(self, key: str | None, sandbox: str, path: str) -> Sequence[str]:
        where = f"/v1/sandboxes/{sandbox}/files/list?{urlencode({'path': path})}"
        return [entry["name"] for entry in self._json("GET", where, key)]

    def call(
        self,
        key: str | None,
        capability: str,
        parameters: Mapping[str, Any],
        sandbox: str,
        *,
        once: str = "",
    ) -> Mapping[str, Any]:
        body = {"capability": capability, "parameters": parameters, "sandbox": sandbox}
        value: Mapping[str, Any] = self._json("POST", "/v1/call", key, body, once)["value"]
        return value

    def _json(
        self, method: str, path: str, key: str | None, body: object = None, once: str = ""
    ) -> Any:
        data = None if body is None else json.dumps(body).encode()
        answer = self._ask(method, path, key, data, once, json=body is not None)
        return json.loads(answer.body) if answer.body else None

    def _ask(
        self,
        method: str,
        path: str,
        key: str | None,
        body: bytes | None = None,
        once: str = "",
        *,
        json: bool = False,
    ) -> Answer:
        answer = ask(self.address, method, path, body, _headers(key, once, json=json))
        if answer.status >= 400:
            raise _refusal(answer)
        return answer


def _headers(key: str | None, once: str = "", *, json: bool = False) -> dict[str, str]:
    found = {} if key is None else {"x-api-key": key}
    found |= {"idempotency-key": once} if once else {}
    return found | ({"content-type": "application/json"} if json else {})


def _refusal(answer: Answer) -> Refusal:
    told = json.loads(answer.body)
    again = answer.headers.get("retry-after")
    return Refusal(**told, retry_after=None if again is None else float(again))


def _ended(result: Mapping[str, Any]) -> Ended:
    stdout, stderr = result["stdout"].encode(), result["stderr"].encode()
    if result["encoding"] == "base64":
        stdout, stderr = base64.b64decode(stdout), base64.b64decode(stderr)
    cause = result["cause"]
    return Ended(
        stdout, stderr, result["exit_code"], result["signal"], cause["code"], cause["remediation"]
    )
