"""Threat: whoever may not make a call does the same by another way in.

Control: every way to a command, a file, a port or a copy of a sandbox asks the same policy, in the
same words, and a refusal is written down. Each is tried with the policy's permission first: then it
must work, so that a refusal is the policy's.
"""

import contextlib
import io
import json
import select
import tarfile
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest
from tests.security.daemons import WAIT, Answer, Daemon, fixture, until

from agentd.client.http import address, frames
from agentd.client.http.client import HttpClient
from agentd.client.http.websocket import WebSocket
from agentd.model.errors import AgentdError

# mallory may do nothing but in a sandbox whose label says so, or with one path.
POLICY = """
decision := {"allow": false, "reasons": ["test.mallory: not this"]} if {
	input.principal.name == "mallory"
	not permitted
} else := {"allow": true}

permitted if input.sandbox.labels.open == "yes"

permitted if input.parameters.path == "/workspace/permitted"

permitted if "admin" in input.principal.scopes
"""

daemon = fixture(
    '[sandbox]\nminimum = "none"\nmounts = ["/"]\nnetworks = ["none", "host"]\n', policy=POLICY
)


@pytest.fixture(scope="module")
def mallory(daemon: Daemon) -> str:
    return daemon.key("mallory")


@pytest.fixture(scope="module")
def boxes(daemon: Daemon, mallory: str) -> Iterator[tuple[str, str]]:
    """Two of mallory's, alike but for what the policy thinks of them: one open, one closed."""
    found = []
    for label in ("yes", "no"):
        body = {"labels": {"open": label}, "ttl": "10m"}
        made = daemon.ask("POST", "/v1/sandboxes", body, key=_maker(daemon))
        assert made.status == 201, made.body
        id_ = made.json["id"]
        daemon.ask(
            "PUT", f"/v1/sandboxes/{id_}/files?path=/workspace/kept", b"kept", key=_maker(daemon)
        )
        found.append(id_)
    yield found[0], found[1]


def _maker(daemon: Daemon) -> str:
    """A key of mallory's name that is an admin's: what it makes is mallory's."""
    return daemon.key("mallory", "admin")


Way = Callable[[Daemon, str, str], Answer]


def _tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        entry = tarfile.TarInfo("planted")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    return made.getvalue()


def _rest(method: str, path: str, body: object = None) -> Way:
    return lambda daemon, box, key: daemon.ask(method, f"/v1/sandboxes/{box}/{path}", body, key=key)


def _call(name: str, **parameters: object) -> Way:
    return lambda daemon, box, key: daemon.call(name, parameters, sandbox=box, key=key)


def _stream(daemon: Daemon, box: str, key: str) -> Answer:
    body = {"capability": "fs.list.v1", "sandbox": box, "parameters": {"path": "/"}}
    answer = daemon.ask("POST", "/v1/call/stream", body, key=key)
    last = answer.body.decode().rstrip("\n").split("\n")
    fields = json.loads(last[-1].removeprefix("data: "))
    status = int(fields.pop("status")) if last[-2] == "event: error" else 200
    return Answer(status, json.dumps(fields).encode(), answer.headers)


def _websocket(daemon: Daemon, box: str, key: str) -> Answer:
    client = HttpClient(address.parse(daemon.url, api_key=key))
    found = b""
    with contextlib.closing(WebSocket(client, f"/v1/sandboxes/{box}/exec", {})) as link:
        link.send(frames.TEXT, json.dumps({"cmd": "echo ran"}).encode())
        with contextlib.suppress(ConnectionError):
            while b"error" not in found and b"exit" not in found:
                select.select([link], [], [], 0 if link.pending else WAIT)
                found += b"".join(message.data for message in link.receive())
    client.close()
    if b'"error"' not in found:
        return Answer(200, b"{}", {})
    error = json.loads(found[found.index(b"{") :])["error"]
    return Answer(403, json.dumps(error).encode(), {})


def _port(daemon: Daemon, box: str, key: str) -> Answer:
    answer = daemon.ask("GET", f"/v1/sandboxes/{box}/ports/8080/", key=key)
    # Nothing listens there: to be told so is to have come through.
    return answer if answer.code == "policy_denied" else Answer(200, b"{}", answer.headers)


def _port_websocket(daemon: Daemon, box: str, key: str) -> Answer:
    client = HttpClient(address.parse(daemon.url, api_key=key))
    try:
        WebSocket(client, f"/v1/sandboxes/{box}/ports/8080/", {}).close()
    except AgentdError as error:
        if error.code == "policy_denied":
            return Answer(403, json.dumps(error.as_dict()).encode(), {})
    finally:
        client.close()
    return Answer(200, b"{}", {})


_PATH = "path=" + quote("/workspace/kept")
WAYS: dict[str, Way] = {
    "a call": _call("fs.list.v1", path="/"),
    "a call that is followed": _stream,
    "a call of a command": _call("shell.exec.v1", command="true"),
    "exec": _rest("POST", "exec", {"cmd": "true"}),
    "exec without waiting": _rest("POST", "exec", {"cmd": "true", "wait": False}),
    "exec over WebSocket": _websocket,
    "a terminal": _rest("POST", "exec", {"cmd": "true", "pty": {"rows": 9, "cols": 9}}),
    "reading a file": _rest("GET", f"files?{_PATH}"),
    "a range of a file": _rest("GET", f"files?{_PATH}"),
    "its head": _rest("HEAD", f"files?{_PATH}"),
    "writing a file": _rest("PUT", "files?path=/workspace/new", b"x"),
    "removing a file": _rest("DELETE", "files?path=/workspace/nothing"),
    "listing": _rest("GET", "files/list?path=/workspace"),
    "stat": _rest("GET", f"files/stat?{_PATH}"),
    "mkdir": _rest("POST", "files/mkdir", {"path": "/workspace/d", "parents": True}),
    "move": _rest("POST", "files/move", {"path": "/workspace/kept", "to": "/workspace/kept"}),
    "watch": _rest("GET", "files/watch?path=/workspace/none"),
    "reading a tar": _rest("GET", "files/tar?path=/workspace"),
    "unpacking a tar": _rest("PUT", "files/tar?path=/workspace", _tar()),
    "a port": _port,
    "a port by WebSocket": _port_websocket,
    "a snapshot": _rest("POST", "snapshot"),
    "a fork": _rest("POST", "fork", {"count": 1}),
    "the changes": _rest("GET", "changes"),
    "apply": _rest("POST", "apply"),
}


@pytest.mark.parametrize("name", WAYS)
def test_what_is_denied_is_denied_by_every_way(
    daemon: Daemon, mallory: str, boxes: tuple[str, str], name: str
) -> None:
    way, (is_open, closed) = WAYS[name], boxes
    allowed = way(daemon, is_open, mallory)
    assert allowed.status not in (401, 404, 405) or name in ("removing a file", "watch")
    if allowed.status >= 400 and allowed.body:
        assert json.loads(allowed.body)["code"] != "policy_denied"
    wanted = {"kind": "denial", "principal": "mallory", "sandbox": closed}
    before = len(daemon.records(**wanted))
    denied = way(daemon, closed, mallory)
    assert denied.status == 403
    if denied.body:
        assert denied.code == "policy_denied"
    until(lambda: len(daemon.records(**wanted)) > before)
    after = daemon.records(**wanted)
    assert len(after) == before + 1
    assert after[-1].fields["reasons"] == ["test.mallory: not this"]


def test_nothing_of_that_has_happened(daemon: Daemon, boxes: tuple[str, str], mallory: str) -> None:
    _, closed = boxes
    records = [r for r in daemon.records(sandbox=closed) if r.principal == "mallory"]
    by_key = [r.capability for r in records if r.kind in ("start", "end")]
    assert by_key == ["fs.write.v1"] * 2  # the file that the sandbox was made with
    found = daemon.ask("GET", f"/v1/sandboxes/{closed}/processes", key=mallory)
    assert found.json == []


def test_to_make_a_sandbox_is_a_way_too(daemon: Daemon, mallory: str) -> None:
    for path, body in (
        ("/v1/sandboxes", {}),
        ("/v1/run", {"sandbox": {}, "exec": {"cmd": "id"}}),
        ("/v1/call", {"capability": "shell.exec.v1", "parameters": {"command": "id"}}),
    ):
        answer = daemon.ask("POST", path, body, key=mallory)
        assert (answer.status, answer.code) == (403, "policy_denied"), path
    assert daemon.ask("GET", "/v1/sandboxes?label=x=y", key=mallory).json["sandboxes"] == []


def test_a_move_is_judged_by_where_it_goes_as_well(
    daemon: Daemon, mallory: str, boxes: tuple[str, str]
) -> None:
    """The path that is permitted does not take the other along."""
    _, closed = boxes
    for path, to in (("permitted", "kept"), ("kept", "permitted")):
        body = {"path": f"/workspace/{path}", "to": f"/workspace/{to}"}
        answer = daemon.ask("POST", f"/v1/sandboxes/{closed}/files/move", body, key=mallory)
        assert answer.code == "policy_denied", body
    written = daemon.ask(
        "PUT", f"/v1/sandboxes/{closed}/files?path=/workspace/permitted", b"x", key=mallory
    )
    assert written.status == 200


def test_a_connection_that_is_kept_asks_anew_each_time(
    daemon: Daemon, mallory: str, boxes: tuple[str, str]
) -> None:
    is_open, closed = boxes
    with contextlib.closing(daemon.connect()) as link:
        for box, status in ((is_open, 200), (closed, 403), (is_open, 200)):
            path = f"/v1/sandboxes/{box}/files/list?path=/workspace"
            link.request("GET", path, headers={"X-API-Key": mallory})
            response = link.getresponse()
            response.read()
            assert response.status == status
