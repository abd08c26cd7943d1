"""Calls of capabilities, by every way in and under every policy: one decision, one shape of the
answer, one receipt, one error.

A policy is in force in a daemon of its own and, for calls without one, in a folder beside it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.contract.conftest import _end_supervisor, _ready

from agentd.audit.receipt import Statement, verify
from agentd.client import build
from agentd.client.http import address
from agentd.client.http.client import Client
from agentd.client.http.sse import events
from agentd.client.sandbox import Sandbox
from agentd.linux import idmap
from agentd.model.api import CallView
from agentd.model.errors import AgentdError, Refused
from agentd.policy import source
from agentd.sandbox.manager import Manager

_CONFIG = """
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
            timeout=50,
            check=False,
        )


@pytest.fixture(scope="module", params=POLICIES)
def governed(request: pytest.FixtureRequest) -> Iterator[Governed]:
    policy = POLICIES[request.param]
    if why := _blocker(policy):
        pytest.skip(f"{policy.name} on {policy.backend}: {why}")
    with tempfile.TemporaryDirectory(prefix="contract-calls-") as name:
        folder = Path(name)
        bundle = _own(folder) if policy.name == "own" else policy.name
        text = _CONFIG.format(folder=folder, uid=os.getuid(), bundle=bundle)
        (folder / "agentd.toml").write_text(text)
        argv = [sys.executable, "-m", "agentd", "serve", "--config", f"{folder}/agentd.toml"]
        log = folder / "log"
        with (
            log.open("wb") as sink,
            subprocess.Popen(
                [*argv, "--state", f"{folder}/state"],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            ) as process,
        ):
            try:
                url = _ready(process, f"unix:{folder}/agentd.sock", log)
                yield Governed(policy, bundle, source.read(bundle).digest, folder, url)
            finally:
                process.terminate()
                process.wait(30)
                _end_supervisor(f"{folder}/state/supervisor.sock")


def _blocker(policy: Policy) -> str:
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
        idmap.close_all()
    return ""


def _own(folder: Path) -> str:
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

        client = Client(address.parse(self.governed.url))
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
        words = [capability, "--json", json.dumps(parameters), "--as-json"]
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
    connection = Client(address.parse(url))
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


@pytest.fixture
def embedded_state(governed: Governed, monkeypatch: pytest.MonkeyPatch) -> None:
    """This very process calls under the same policy, and writes to the same folder."""
    monkeypatch.setenv("AGENTD_POLICY", governed.bundle)
    monkeypatch.setenv("AGENTD_DAEMON__STATE", str(governed.folder / "own"))
    monkeypatch.delenv("AGENTD_URL", raising=False)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, governed: Governed, embedded_state: None) -> Iterator[Way]:
    made = WAYS[request.param](governed)
    yield made
    made.close()


@pytest.fixture
def every_way(governed: Governed, embedded_state: None) -> Iterator[list[Way]]:
    made = [way(governed) for way in WAYS.values()]
    yield made
    for each in made:
        each.close()


# --- one decision ---


def test_what_is_allowed_says_by_whom_and_why(way: Way, governed: Governed) -> None:
    view = way.call(*LISTS)
    decision = view["decision"]
    assert (decision["allow"], decision["undecided"]) == (True, "")
    assert decision["bundle"] == governed.digest
    assert decision["reasons"] == [governed.policy.reason]
    assert view["status"] == "ok" and view["value"]["entries"] == []


def test_what_is_denied_is_denied_by_every_way(way: Way, governed: Governed) -> None:
    denied = governed.policy.denied
    if denied is None:
        pytest.skip(f"{governed.policy.name} denies an admin nothing")
    name, parameters, why = denied
    with pytest.raises(Refusal) as caught:
        way.call(name, parameters)
    told = f"the policy does not allow {ME} to call {name}: {why}"
    assert caught.value.text.startswith(told)
    assert caught.value.code in ("policy_denied", "") and caught.value.exit_code in (0, 125)


@pytest.mark.parametrize("path", ["zero", "nonsense"])
def test_what_cannot_be_decided_is_refused_as_that(way: Way, governed: Governed, path: str) -> None:
    if governed.policy.name != "own":
        pytest.skip(f"{governed.policy.name} decides on everything")
    with pytest.raises(Refusal) as caught:
        way.call("fs.list.v1", {"path": path})
    assert caught.value.text.startswith("the policy could not decide on fs.list.v1: ")
    assert caught.value.code in ("policy_undecided", "") and caught.value.exit_code in (0, 125)
    assert way.call(*LISTS)["status"] == "ok"  # and goes on


def test_the_policy_that_is_expected_must_be_in_force(way: Way, governed: Governed) -> None:
    other = "sha256:" + "0" * 64
    with pytest.raises(Refusal) as caught:
        way.call(*LISTS, bundle=other)
    told = f"the caller expects the policy {other}, and {governed.digest} is in force"
    assert told in caught.value.text and caught.value.code in ("policy_denied", "")
    assert way.call(*LISTS, bundle=governed.digest)["status"] == "ok"


# --- one answer ---


def _same(view: dict[str, Any]) -> dict[str, Any]:
    """Without what is another each time: ids, times, what was used."""
    assert view["request_id"] == view["receipt"] != ""
    sandbox = {**view["sandbox"], "id": ""}
    return {
        **view,
        "request_id": "",
        "receipt": "",
        "timing": sorted(view["timing"]),
        "usage": sorted(view["usage"]),
        "sandbox": sandbox,
        "enforcement": sorted(view["enforcement"]),
    }


def test_every_way_has_the_same_answer(every_way: list[Way], governed: Governed) -> None:
    script = "printf out; printf err >&2; exit 3"
    asked = ("shell.exec.v1", {"command": "sh", "args": ["-c", script]})
    found = {way.name: _same(way.call(*asked)) for way in every_way}
    first = found["REST"]
    assert (first["value"]["stdout"], first["value"]["exit_code"]) == ("out", 3)
    assert (first["status"], first["cause"]["code"]) == ("failed", "exited")
    assert first["sandbox"]["backend"] == governed.policy.backend
    for name, view in found.items():
        assert view == first, name


def test_what_it_has_before_its_end_is_the_same(way: Way) -> None:
    asked = {"command": "sh", "args": ["-c", "echo one; echo two"]}
    view = way.call("shell.exec.v1", asked, follow=True)
    assert b"".join(data for name, data in way.heard if name == "stdout") == b"one\ntwo\n"
    assert view["value"]["stdout"] == "one\ntwo\n"


def test_obligations_hold_by_every_way(way: Way, governed: Governed) -> None:
    if governed.policy.name != "own":
        pytest.skip(f"{governed.policy.name}: its bounds are too wide to run into in a test")
    view = way.call("shell.exec.v1", {"command": "yes"})
    assert view["cause"]["code"] == "output_limit"
    assert len(view["value"]["stdout"]) == 1000
    assert view["decision"]["obligations"]["limits"]["output"] == 1000


def test_a_sandbox_that_is_there_keeps_what_is_written(way: Way, governed: Governed) -> None:
    if isinstance(way, CliEmbedded):
        pytest.skip(f"{way.name}: its sandbox ends with the call")
    with Sandbox.create(url=governed.url, backend=governed.policy.backend) as there:
        id_ = None if isinstance(way, SdkEmbedded) else there.id
        if isinstance(way, SdkOverHttp):
            way._sandbox = Sandbox.connect(there.id, url=governed.url)
        way.call("fs.write.v1", {"path": "kept", "content": "yes"}, sandbox=id_)
        view = way.call("fs.read.v1", {"path": "kept"}, sandbox=id_)
        assert view["value"]["content"] == "yes"
        assert id_ in (None, view["sandbox"]["id"])


# --- one receipt ---


def test_the_receipt_holds_by_the_public_key_alone(
    way: Way, governed: Governed, tmp_path: Path
) -> None:
    view = way.call("fs.write.v1", {"path": "a", "content": "text"})
    said = way.receipt(view["receipt"])
    execution = said.predicate.execution
    assert (execution.principal, execution.request) == (ME, view["request_id"])
    assert (execution.capability, execution.sandbox) == ("fs.write.v1", view["sandbox"]["id"])
    assert (execution.backend, execution.level) == (
        view["sandbox"]["backend"],
        view["sandbox"]["level"],
    )
    assert sorted(execution.enforcement) == sorted(view["enforcement"])
    assert (execution.decision.allow, execution.decision.bundle) == (True, governed.digest)
    assert list(execution.decision.reasons) == view["decision"]["reasons"]
    assert execution.cause.code == view["cause"]["code"]
    assert execution.input_digest == f"sha256:{sha256(b'text').hexdigest()}"
    value = sha256(msgspec.json.encode(view["value"])).hexdigest()
    assert {s.name: s.digest["sha256"] for s in said.subject}["value"] == value
    assert execution.started <= execution.ended
    # And so says the command line, which needs no daemon for it.
    (tmp_path / "receipt.json").write_bytes(way.envelope(view["receipt"]))
    (tmp_path / "key.pem").write_bytes(way.public_key())
    words = ("receipt", "verify", f"{tmp_path}/receipt.json", "--key", f"{tmp_path}/key.pem")
    done = governed.agentd(*words)
    assert done.returncode == 0, done.stderr


def test_the_audit_log_holds_the_record_that_it_chains_to(way: Way, governed: Governed) -> None:
    view = way.call(*LISTS)
    head = way.receipt(view["receipt"]).predicate.record
    folder = str(governed.state(embedded=way.embedded) / "audit")
    done = governed.agentd("audit", "verify", "--dir", folder, "--head", str(head))
    assert done.returncode == 0, done.stdout
    place = str(head.seq)
    done = governed.agentd("audit", "export", "--dir", folder, "--from", place, "--to", place)
    record = json.loads(done.stdout)
    assert (record["kind"], record["request"]) == ("end", view["request_id"])
    assert (record["principal"], record["hash"]) == (ME, head.hash)
    forged = f"{head.seq}:{'0' * 64}"
    assert governed.agentd("audit", "verify", "--dir", folder, "--head", forged).returncode == 1


# --- one error ---

ERRORS = {
    "an unknown capability": ("fs.raed.v1", {}, "not_found", 1),
    "a missing parameter": ("fs.read.v1", {}, "invalid_input", 2),
    "an unknown parameter": ("fs.list.v1", {"paht": "."}, "invalid_input", 2),
    "a missing file": ("fs.read.v1", {"path": "nothing"}, "not_found", 1),
    "a directory": ("fs.read.v1", {"path": "."}, "is_directory", 1),
}


@pytest.mark.parametrize("case", ERRORS)
def test_every_way_has_the_same_error(every_way: list[Way], governed: Governed, case: str) -> None:
    name, parameters, code, exit_code = ERRORS[case]
    texts = {}
    for way in every_way:
        with pytest.raises(Refusal) as caught:
            way.call(name, parameters)
        assert caught.value.code in (code, ""), way.name
        assert caught.value.exit_code in (exit_code, 0), way.name
        texts[way.name] = caught.value.text
    assert len(set(texts.values())) == 1, texts


def test_a_sandbox_that_is_not_there(way: Way) -> None:
    if isinstance(way, Sdk):
        pytest.skip(f"{way.name}: it calls in the sandbox that it has")
    with pytest.raises(Refusal) as caught:
        way.call(*LISTS, sandbox="sbx-nothing")
    assert caught.value.code in ("not_found", "") and caught.value.exit_code in (1, 0)
    assert "sbx-nothing" in caught.value.text
