"""What the OpenAPI document says beyond msgspec's schemas: closed sets of words, patterns, tags,
the statuses of errors, and what is no row of the table (WebSockets and ports)."""

import re
from typing import Any

from agentd.ingest.rest.operation import Operation
from agentd.model.control import MAX_SIDE, MAX_SIGNAL, TARGETS
from agentd.model.egress import NETS, RESTRICTED
from agentd.model.idle import IDLE, OnIdle
from agentd.model.isolation import IsolationLevel
from agentd.model.mount import VOLUME_NAME
from agentd.model.output import STREAMS
from agentd.model.principal import SCOPES

_LEVELS = [level.label for level in IsolationLevel]
_STATES = ["created", "starting", "ready", "paused", "snapshotting", "ending", "ended"]
_SIDE = {"minimum": 1, "maximum": MAX_SIDE}
# By component and property; where a property may be null, only its other forms are narrowed.
MEMBERS: dict[tuple[str, str], dict[str, Any]] = {
    ("SandboxBody", "isolation"): {"enum": _LEVELS},
    ("SandboxBody", "image"): {"pattern": "^[a-z0-9][a-z0-9._-]{0,63}$"},
    ("SandboxBody", "snapshot"): {"pattern": "^snp-[0-9a-f]+$"},
    ("SandboxBody", "on_idle"): {"enum": list(OnIdle)},
    ("ExecBody", "stdin_encoding"): {"enum": ["utf-8", "base64"]},
    ("VolumeBody", "name"): {"pattern": f"^{VOLUME_NAME.pattern}$"},
    ("KeyBody", "name"): {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
    ("SignalBody", "signal"): {"minimum": 0, "maximum": MAX_SIGNAL},
    ("SignalBody", "target"): {"enum": list(TARGETS)},
    ("Pty", "rows"): _SIDE,
    ("Pty", "cols"): _SIDE,
    ("ForkBody", "count"): {"minimum": 1},
    ("LinkBody", "port"): {"minimum": 1, "maximum": 65535},
    ("CommitBody", "name"): {"pattern": "^[a-z0-9][A-Za-z0-9._/:-]{0,127}$"},
    ("CallBody", "capability"): {"pattern": "^[a-z][a-z0-9_.]*$"},
    ("SandboxView", "level"): {"enum": _LEVELS},
    ("SandboxView", "state"): {"enum": _STATES},
    ("SandboxView", "net"): {"enum": [*NETS, RESTRICTED]},
    ("SandboxView", "on_idle"): {"enum": ["", *OnIdle]},
    ("SandboxView", "paused_by"): {"enum": ["", IDLE]},
    ("NetworkView", "net"): {"enum": [*NETS, RESTRICTED]},
    ("ProcessView", "state"): {"enum": ["running", "ended"]},
    ("ResultView", "encoding"): {"enum": ["utf-8", "base64"]},
    ("ResultView", "status"): {"enum": ["ok", "failed", "error"]},
    ("ApprovalView", "state"): {
        "enum": ["pending", "approved", "denied", "expired", "withdrawn"]
    },
}  # fmt: skip
ITEMS: dict[tuple[str, str], dict[str, Any]] = {
    ("KeyBody", "scopes"): {"enum": list(SCOPES)},
    ("KeyView", "scopes"): {"enum": list(SCOPES)},
}
QUERY: dict[str, dict[str, Any]] = {
    "label": {"pattern": "^[^=]+=.*$"},
    "state": {"enum": ["", *_STATES]},
    "stream": {"enum": ["", *STREAMS]},
    "limit": {"minimum": 1},
}
_WORDS = {
    "sandboxes": "sandboxes", "processes": "processes", "exec": "processes", "run": "processes",
    "files": "files", "changes": "files", "apply": "files", "ports": "ports", "links": "ports",
    "snapshots": "snapshots", "snapshot": "snapshots", "fork": "snapshots",
    "commit": "snapshots", "network": "network", "connections": "network", "keys": "keys",
    "volumes": "volumes", "secrets": "secrets",
    "approvals": "approvals", "call": "capabilities", "capabilities": "capabilities",
    "receipts": "audit", "receipt-key": "audit", "audit": "audit",
}  # fmt: skip
_PORT = {
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "minimum": 1, "maximum": 65535},
}
_ONE = "/v1/sandboxes/{id}"
_FORWARDED = ("get", "head", "post", "put", "patch", "delete", "options")


def narrow(components: dict[str, Any]) -> None:
    """Narrow the schemas of bodies and views, in place."""
    for (name, member), facts in MEMBERS.items():
        for form in _forms(components, name, member):
            form.update(facts)
    for (name, member), facts in ITEMS.items():
        for form in _forms(components, name, member):
            form["items"] = {**form.get("items", {}), **facts}


def _forms(components: dict[str, Any], name: str, member: str) -> list[dict[str, Any]]:
    found = components.get(name, {}).get("properties", {}).get(member)
    if found is None:
        return []
    forms = found.get("anyOf", [found])
    return [form for form in forms if form.get("type") != "null"]


def tag(path: str) -> str:
    """Return the last word of a path that names a subject."""
    words = [word for word in re.split(r"[/{}]+", path) if word in _WORDS]
    return _WORDS[words[-1]] if words else "daemon"


def errors(operation: Operation) -> dict[int, str]:
    """Return the statuses of what may go wrong, beside those that any request may have."""
    found = {400: "it does not fit", 429: "a quota or a room is full", 500: "a fault of ours"}
    found[503] = "the daemon ends, or cannot write it down"
    if operation.scope != "none":
        found |= {401: "nobody proved who asks", 403: "it is refused"}
    if "{" in operation.path:
        found |= {404: "it is not there, or another's", 409: "its state does not allow it"}
    if "/v1/sandboxes/{id}" in operation.path:
        found |= {410: "the sandbox has ended", 502: "what is inside failed"}
        found[501] = "its wall cannot do this"
    if operation.body is not None:
        found |= {413: "it is too large", 415: "its body is encoded"}
    if operation.once:
        found[409] = "an Idempotency-Key's request was interrupted"
    if operation.once or "/call" in operation.path:
        found[422] = "another request had that Idempotency-Key, or the capability failed"
    if operation.waits:
        found |= {410: "the sandbox has ended", 502: "what is inside failed"}
    if "/files" in operation.path:
        found[507] = "the sandbox's disk is full"
    return found


def more_paths(error: dict[str, Any]) -> dict[str, Any]:
    """Describe WebSockets, and ports of sandboxes."""
    id_ = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    failed = {"default": {"description": "an error", "content": error}}
    return _websockets(id_, failed) | _ports(id_, failed)


def _websockets(id_: dict[str, Any], failed: dict[str, Any]) -> dict[str, Any]:
    upgraded = {"101": {"description": "the WebSocket is open"}, **failed}
    cursors = [
        {"name": name, "in": "query", "schema": {"type": "integer", "minimum": 0}}
        for name in STREAMS
    ]
    return {
        f"{_ONE}/exec": {
            "get": {
                "operationId": "ws_exec",
                "summary": "a WebSocket: start a command, and be attached to it",
                "description": "Scope: run and read. The first message is an ExecBody; "
                "then as attach.",
                "tags": ["processes"],
                "parameters": [id_],
                "responses": upgraded,
            }
        },
        f"{_ONE}/processes/{{proc}}/attach": {
            "get": {
                "operationId": "ws_attach",
                "summary": "a WebSocket: a process's streams, both ways",
                "description": "Scope: run and read. Binary messages from the server are one byte "
                "for the stream (1 stdout, 2 stderr, 3 pty), eight big-endian for the cursor, and "
                "data; to the server they are stdin. Text messages are JSON: events started, lost, "
                "exit and error from the server, ops eof, signal and resize to it.",
                "tags": ["processes"],
                "parameters": [id_, {**id_, "name": "proc"}, *cursors],
                "responses": upgraded,
            }
        },
    }


def _ports(id_: dict[str, Any], failed: dict[str, Any]) -> dict[str, Any]:
    port = {"name": "port", **_PORT}
    rest = {**id_, "name": "path", "description": "the rest, slashes too, as it is written"}
    answers = {"2XX": {"description": "what the server inside answers"}, **failed}
    methods = {
        method: {
            "operationId": f"port_{method}",
            "summary": "HTTP or a WebSocket to a server inside",
            "description": "Scope: ports. Credentials stay outside; cookies are of the port.",
            "tags": ["ports"],
            "parameters": [id_, port, rest],
            "responses": answers,
        }
        for method in _FORWARDED
    }
    tunnel = {
        "operationId": "ws_tunnel",
        "summary": "a WebSocket: plain bytes to a server inside",
        "description": "Scope: ports. Binary messages are bytes, both ways. The text op eof says "
        "that no more comes from the client, the event eof that no more comes from inside.",
        "tags": ["ports"],
        "parameters": [id_, port],
        "responses": {"101": {"description": "the WebSocket is open"}, **failed},
    }
    return {f"{_ONE}/ports/{{port}}/{{path}}": methods, f"{_ONE}/tunnels/{{port}}": {"get": tunnel}}
