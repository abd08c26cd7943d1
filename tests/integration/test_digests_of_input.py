"""A receipt has the digest of what was read, or written to a file, in whatever way it was sent, and
of what was asked for."""

import base64
import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import pytest
from tests.security.daemons import Daemon, running, until

DATA = b"hello\0\xff" * 30_000  # more than is given at once
TEXT = base64.b64encode(DATA).decode()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def waited(daemon: Daemon, box: str) -> str:
    asked = {"cmd": "wc -c", "stdin": TEXT, "stdin_encoding": "base64"}
    return str(daemon.ask("POST", f"/v1/sandboxes/{box}/exec", asked).json["receipt"])


def fed(daemon: Daemon, box: str) -> str:
    asked = {"cmd": "wc -c", "wait": False, "stdin": "hello", "stdin_open": True}
    process = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", asked).json["id"]
    path = f"/v1/sandboxes/{box}/processes/{process}"
    daemon.ask("POST", f"{path}/stdin?eof=true", DATA[5:], Content_Type="application/octet-stream")
    until(lambda: daemon.ask("GET", path).json["state"] == "ended")
    return str(daemon.ask("GET", path).json["result"]["receipt"])


def called(daemon: Daemon, box: str) -> str:
    asked = {"command": "wc", "args": ["-c"], "stdin": TEXT, "stdin_encoding": "base64"}
    return str(daemon.call("shell.exec.v1", asked, sandbox=box).json["receipt"])


def written(daemon: Daemon, box: str) -> str:
    asked = {"path": "a.bin", "content": TEXT, "encoding": "base64"}
    return str(daemon.call("fs.write.v1", asked, sandbox=box).json["receipt"])


def uploaded(daemon: Daemon, box: str) -> str:
    path = f"/v1/sandboxes/{box}/files?path=/workspace/b.bin"
    return daemon.ask("PUT", path, DATA).headers["x-request-id"]


def execution(daemon: Daemon, receipt: str) -> Any:
    found = daemon.ask("GET", f"/v1/receipts/{receipt}")
    assert found.status == 200, found.body
    return json.loads(base64.b64decode(found.json["payload"]))["predicate"]["execution"]


@pytest.mark.parametrize("way", [waited, fed, called, written, uploaded])
def test_it_is_of_the_bytes(daemon: Daemon, way: Callable[[Daemon, str], str]) -> None:
    told = execution(daemon, way(daemon, daemon.sandbox()))
    assert told["input_digest"] == f"sha256:{sha256(DATA).hexdigest()}"


def test_what_a_command_does_not_take_is_none_of_what_it_read(daemon: Daemon) -> None:
    box = daemon.sandbox()
    asked = {"cmd": "cat; read -r go < /workspace/go", "wait": False, "stdin": "abc"}
    daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "mkfifo /workspace/go"})
    process = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", asked).json["id"]
    path = f"/v1/sandboxes/{box}/processes/{process}"
    late = daemon.ask("POST", f"{path}/stdin", b"late", Content_Type="application/octet-stream")
    assert late.status == 400
    daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "echo > /workspace/go"})
    until(lambda: daemon.ask("GET", path).json["state"] == "ended")
    told = execution(daemon, daemon.ask("GET", path).json["result"]["receipt"])
    assert told["input_digest"] == f"sha256:{sha256(b'abc').hexdigest()}"


def test_what_is_done_with_a_path_is_a_part_of_what_was_asked(daemon: Daemon) -> None:
    def done(method: str, path: str, body: object = None) -> str:
        answer = daemon.ask(method, f"/v1/sandboxes/{box}/files{path}", body)
        assert answer.status < 300, answer.body
        told = execution(daemon, answer.headers["x-request-id"])
        assert told["capability"] == "fs.write.v1"
        return str(told["request_digest"])

    box = daemon.sandbox()
    at = "/workspace/it"
    digests = [
        done("PUT", f"?path={at}", b""),
        done("POST", "/move", {"path": at, "to": "/workspace/one"}),
        done("PUT", f"?path={at}", b"more"),
        done("POST", "/move", {"path": at, "to": "/workspace/two"}),
        done("POST", "/mkdir", {"path": at}),
        done("DELETE", f"?path={at}&recursive=true"),
    ]
    assert digests[0] == digests.pop(2)
    assert len(set(digests)) == len(digests)
