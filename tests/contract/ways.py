"""The policies that calls are made under, and the ways in by which they are made."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agentd.audit.receipt import Statement, verify
from agentd.client import build
from agentd.client.http import address
from agentd.client.http.client import HttpClient
from agentd.client.http.sse import events
from agentd.client.sandbox import Sandbox
from agentd.model.api import CallView
from agentd.model.errors import AgentdError, Refused
from agentd.sandbox.manager import Manager

CONFIG = """
[[listen]]
address = "unix:{folder}/agentd.sock"
[[auth.peers]]
uid = {uid}
scopes = ["admin"]
[policy]
bundle = "{bundle}"
"""
OWN = """
package agentd

import rego.v1

decision := {"allow": false, "reasons": ["own.search: nobody searches"]} if {
	input.capability.name == "fs.search.v1"
} else := {"allow": "perhaps"} if {
	input.parameters.path == "nonsense"
} else := {"allow": true, "reasons": ["own.all: as you like"], "obligations": obligations} if {
	1 / divisor > 0
}

obligations := {"limits": {"timeout": 30, "output": 1000}}

divisor := 0 if {
	input.parameters.path == "zero"
} else := 1
"""
ME = f"uid:{os.getuid()}"
ADMIN = f"scopes.admin: {ME} is an admin"
LISTS = ("fs.list.v1", {"path": "."})


@dataclass(frozen=True)
class Policy:
    """What differs between them: who decides, and what a sandbox must have before it is used."""

    name: str
    reason: str
    backend: str = "linux"
    limits: Mapping[str, Any] = field(default_factory=dict)
    denied: tuple[str, dict[str, Any], str] | None = None  # a call, and words of why


POLICIES = {
    "permissive": Policy("permissive", ADMIN),
    "strict": Policy(
        "strict",
        ADMIN,
        limits={"memory": "1G", "cpus": 1, "pids": 256, "disk": "256M"},
        denied=("fs.write.v1", {"path": "/etc/x", "content": ""}, "filesystem.outside"),
    ),
    "paranoid": Policy(
        "paranoid",
        ADMIN,
        backend="qemu",
        limits={"memory": "512M", "cpus": 1, "pids": 128, "disk": "256M", "open_files": 1024},
        denied=("http.fetch.v1", {"url": "https://example.org/"}, "network.none"),
    ),
    "own": Policy(
        "own",
        "own.all: as you like",
        denied=("fs.search.v1", {"pattern": "x"}, "own.search: nobody searches"),
    ),
}


class Refusal(Exception):
    """What a caller is told. A command line tells no code, but a number and the text."""

    def __init__(self, text: str, code: str = "", exit_code: int = 0) -> None:
        super().__init__(text)
        self.text, self.code, self.exit_code = text, code, exit_code


@dataclass
class Governed:
    """A policy in force: a daemon's, and that of calls without one."""

    policy: Policy
    bundle: str
    digest: str
    folder: Path
    url: str

    @property
    def env(self) -> dict[str, str]:
        """Of a process that calls by itself."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
        return kept | {
            "AGENTD_POLICY": self.bundle,
            "AGENTD_DAEMON__STATE": str(self.folder / "own"),
            "AGENTD_URL": self.url,
        }

    def state(self, *, embedded: bool) -> Path:
        return self.folder / ("own/embedded" if embedded else "state")

    def agentd(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "agentd", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.env,
            timeout=500,
            check=False,
        )


def blocker(policy: Policy) -> str:
    """Why its wall, or a limit that it obliges to, cannot be had here; "" where both can."""
    manager = Manager()
    try:
        found = manager.backend(policy.backend).probe()
        if not found.usable:
            return "; ".join(blocker.what for blocker in found.blockers)
        manager.create(build.sandbox_spec(backend=policy.backend, **policy.limits))
    except Refused as error:
        return error.message
    finally:
        manager.close()
    return ""


def own_bundle(folder: Path) -> str:
    own = folder / "own-policy"
    own.mkdir(mode=0o755)
    (own / "base.rego").write_text(OWN)
    manifest = {"name": "own", "modules": ["base.rego"], "data": []}
    (own / "manifest.json").write_text(json.dumps(manifest))
    for file in own.iterdir():
        file.chmod(0o644)
    return str(own)


# --- the ways in ---


class Way:
    """One of them. ``view`` is the answer as JSON has it; ``heard`` what came before its end."""

    name = ""
    embedded = False

    def __init__(self, governed: Governed) -> None:
        self.governed = governed
        self.heard: list[tuple[str, bytes]] = []

    def call(
        self,
        capability: str,
        parameters: Mapping[str, Any],
        *,
        bundle: str = "",
        sandbox: str | None = None,
        follow: bool = False,
    ) -> dict[str, Any]:
        """Raises Refusal. Without ``sandbox``, in one of this test's own."""
        raise NotImplementedError

    def close(self) -> None: ...

    def envelope(self, id_: str) -> bytes:
        raise NotImplementedError

    def public_key(self) -> bytes:
        return (self.governed.state(embedded=self.embedded) / "receipt.key.pub").read_bytes()

    def receipt(self, id_: str) -> Statement:
        """Verified by the public key alone."""
        return verify(self.envelope(id_), self.public_key())


class Sdk(Way):
    def __init__(self, governed: Governed) -> None:
        super().__init__(governed)
        self._sandbox: Sandbox | None = None

    @property
    def sandbox(self) -> Sandbox:
        if self._sandbox is None:
            policy = self.governed.policy
            self._sandbox = Sandbox.create(
                url=None if self.embedded else self.governed.url,
                backend=policy.backend,
                **policy.limits,
            )
        return self._sandbox

    def call(
        self,
        capability: str,
        parameters: Mapping[str, Any],
        *,
        bundle: str = "",
        sandbox: str | None = None,
        follow: bool = False,
    ) -> dict[str, Any]:
        emit = (lambda *piece: self.heard.append(piece)) if follow else None
        try:
            view = self.sandbox.call(capability, parameters, emit=emit, bundle=bundle)
        except AgentdError as error:
            raise Refusal(str(error), error.code) from error
        return _decoded(msgspec.json.encode(view))

    def close(self) -> None:
        if self._sandbox is not None:
            self._sandbox.close()


class SdkEmbedded(Sdk):
    name, embedded = "SDK embedded", True

    def envelope(self, id_: str) -> bytes:
        folder = str(self.governed.state(embedded=True) / "receipts")
        done = self.governed.agentd("receipt", "show", id_, "--raw", "--dir", folder)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().encode()


class SdkOverHttp(Sdk):
    name = "SDK over HTTP"

    def envelope(self, id_: str) -> bytes:
        return rest(self.governed.url, "GET", f"/v1/receipts/{id_}")


class Rest(Way):
    name = "REST"
    envelope = SdkOverHttp.envelope  # type: ignore[assignment]

    def public_key(self) -> bytes:
        key: str = json.loads(rest(self.governed.url, "GET", "/v1/receipt-key"))
        return key.encode()

    def call(
        self,
        capability: str,
        parameters: Mapping[str, Any],
        *,
        bundle: str = "",
        sandbox: str | None = None,
        follow: bool = False,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"capability": capability, "parameters": parameters}
        body |= {"bundle": bundle} if bundle else {}
        if sandbox:
            body["sandbox"] = sandbox
        else:
            body["create"] = {"backend": self.governed.policy.backend}
        if follow:
            return self._follow(body)
        return _decoded(rest(self.governed.url, "POST", "/v1/call", body))

    def _follow(self, body: object) -> dict[str, Any]:
        from base64 import b64decode

        client = HttpClient(address.parse(self.governed.url))
        headers = {"Content-Type": "application/json"}
        data = json.dumps(body).encode()
        with client.open("POST", "/v1/call/stream", body=data, headers=headers) as response:
            for event in events(response):
                if event.name == "error":
                    raise _refusal(json.loads(event.data))
                if event.name == "result":
                    last = event.data
                else:
                    self.heard.append((event.name, b64decode(event.data)))
        client.close()
        return _decoded(last.encode())


class CommandLine(Way):
    def call(
        self,
        capability: str,
        parameters: Mapping[str, Any],
        *,
        bundle: str = "",
        sandbox: str | None = None,
        follow: bool = False,
    ) -> dict[str, Any]:
        words = [capability, "--params", json.dumps(parameters), "--json"]
        words += ["--embedded"] if self.embedded else []
        words += ["--bundle", bundle] if bundle else []
        words += ["--follow"] if follow else []
        words += ["--sandbox", sandbox] if sandbox else ["--backend", self.governed.policy.backend]
        done = self.governed.agentd("call", *words)
        if not done.stdout:
            text = done.stderr.removeprefix("agentd call: ").rstrip("\n")
            raise Refusal(text, exit_code=done.returncode)
        if follow:
            self.heard.append(("stdout", done.stderr.encode()))
        found = _decoded(done.stdout.encode())
        assert done.returncode == (0 if found["status"] == "ok" else 1)
        return found


class CliEmbedded(CommandLine):
    name, embedded = "CLI embedded", True
    envelope = SdkEmbedded.envelope  # type: ignore[assignment]


class CliOverHttp(CommandLine):
    name = "CLI over HTTP"
    envelope = SdkOverHttp.envelope  # type: ignore[assignment]


WAYS = {way.name: way for way in (SdkEmbedded, SdkOverHttp, Rest, CliEmbedded, CliOverHttp)}


def rest(url: str, method: str, path: str, body: object = None) -> bytes:
    """As bytes on the wire; raises Refusal with what the answer says."""
    connection = HttpClient(address.parse(url))
    headers = {"Content-Type": "application/json"} if body is not None else {}
    data = None if body is None else json.dumps(body).encode()
    try:
        with connection.open(method, path, body=data, headers=headers) as response:
            return response.read()
    except AgentdError as error:
        raise _refusal(error.as_dict()) from error
    finally:
        connection.close()


def _refusal(fields: Mapping[str, Any]) -> Refusal:
    known = {name: str(fields[name]) for name in ("cause", "remediation")}
    return Refusal(str(AgentdError(str(fields["message"]), **known)), str(fields["code"]))


def _decoded(data: bytes) -> dict[str, Any]:
    """Of the very shape that the model says, nothing more and nothing less."""
    found: dict[str, Any] = json.loads(data)
    view = msgspec.convert(found, CallView, strict=False)
    assert set(found) == set(msgspec.to_builtins(view))
    return found
