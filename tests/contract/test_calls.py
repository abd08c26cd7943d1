"""Calls of capabilities, by every way in and under every policy: one decision, one shape of the
answer, one receipt, one error.

A policy is in force in a daemon of its own and, for calls without one, in a folder beside it. What
it decides, and the whole answer, is asked under every one. What none of them has a say in is asked
where it could differ: ``permissive`` is on the namespace wall, ``paranoid`` on a machine, ``own``
has reasons and obligations of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.contract.conftest import _end_supervisor, _ready
from tests.contract.ways import (
    CONFIG,
    LISTS,
    ME,
    POLICIES,
    WAYS,
    CliEmbedded,
    Governed,
    Refusal,
    Sdk,
    SdkEmbedded,
    SdkOverHttp,
    Way,
    blocker,
    own_bundle,
)

from agentd.client.sandbox import Sandbox
from agentd.policy import source


def under(*names: str) -> pytest.MarkDecorator:
    """For a test that is asked under these policies alone."""
    return pytest.mark.parametrize("governed", names, indirect=True, scope="module")


@pytest.fixture(scope="module", params=POLICIES)
def governed(request: pytest.FixtureRequest) -> Iterator[Governed]:
    policy = POLICIES[request.param]
    if why := blocker(policy):
        pytest.skip(f"{policy.name} on {policy.backend}: {why}")
    with tempfile.TemporaryDirectory(prefix="contract-calls-") as name:
        folder = Path(name)
        bundle = own_bundle(folder) if policy.name == "own" else policy.name
        text = CONFIG.format(folder=folder, uid=os.getuid(), bundle=bundle)
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
                process.wait(120)
                _end_supervisor(f"{folder}/state/supervisor.sock")


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


def _is_allowed(view: dict[str, Any], governed: Governed) -> None:
    decision = view["decision"]
    assert (decision["allow"], decision["undecided"]) == (True, "")
    assert decision["bundle"] == governed.digest
    assert decision["reasons"] == [governed.policy.reason]


@under("own")  # the others have reasons that are of one form: see the same answer by every way
def test_what_is_allowed_says_by_whom_and_why(way: Way, governed: Governed) -> None:
    view = way.call(*LISTS)
    _is_allowed(view, governed)
    assert view["status"] == "ok" and view["value"]["entries"] == []


@under("strict", "paranoid", "own")  # permissive denies an admin nothing
def test_what_is_denied_is_denied_by_every_way(way: Way, governed: Governed) -> None:
    assert governed.policy.denied is not None
    name, parameters, why = governed.policy.denied
    with pytest.raises(Refusal) as caught:
        way.call(name, parameters)
    told = f"the policy does not allow {ME} to call {name}: {why}"
    assert caught.value.text.startswith(told)
    assert caught.value.code in ("policy_denied", "") and caught.value.exit_code in (0, 125)


@under("own")  # the others decide on everything
@pytest.mark.parametrize("path", ["zero", "nonsense"])
def test_what_cannot_be_decided_is_refused_as_that(way: Way, path: str) -> None:
    with pytest.raises(Refusal) as caught:
        way.call("fs.list.v1", {"path": path})
    assert caught.value.text.startswith("the policy could not decide on fs.list.v1: ")
    assert caught.value.code in ("policy_undecided", "") and caught.value.exit_code in (0, 125)
    assert way.call(*LISTS)["status"] == "ok"  # and goes on


@under("permissive", "strict", "own")
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
    _is_allowed(first, governed)
    assert (first["value"]["stdout"], first["value"]["exit_code"]) == ("out", 3)
    assert (first["status"], first["cause"]["code"]) == ("failed", "exited")
    assert first["sandbox"]["backend"] == governed.policy.backend
    for name, view in found.items():
        assert view == first, name


@under("permissive", "paranoid")
def test_what_it_has_before_its_end_is_the_same(way: Way) -> None:
    asked = {"command": "sh", "args": ["-c", "echo one; echo two"]}
    view = way.call("shell.exec.v1", asked, follow=True)
    assert b"".join(data for name, data in way.heard if name == "stdout") == b"one\ntwo\n"
    assert view["value"]["stdout"] == "one\ntwo\n"


@under("own")  # the bounds of the others are too wide to run into in a test
def test_obligations_hold_by_every_way(way: Way) -> None:
    view = way.call("shell.exec.v1", {"command": "yes"})
    assert view["cause"]["code"] == "output_limit"
    assert len(view["value"]["stdout"]) == 1000
    assert view["decision"]["obligations"]["limits"]["output"] == 1000


@under("permissive", "paranoid")
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


@under("own", "paranoid")
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


@under("own")
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


@under("own")
@pytest.mark.parametrize("case", ERRORS)
def test_every_way_has_the_same_error(every_way: list[Way], case: str) -> None:
    _same_error(every_way, case)


@under("paranoid")
def test_every_way_has_the_same_error_of_a_machine(every_way: list[Way]) -> None:
    _same_error(every_way, "a missing file")


def _same_error(every_way: list[Way], case: str) -> None:
    name, parameters, code, exit_code = ERRORS[case]
    texts = {}
    for way in every_way:
        with pytest.raises(Refusal) as caught:
            way.call(name, parameters)
        assert caught.value.code in (code, ""), way.name
        assert caught.value.exit_code in (exit_code, 0), way.name
        texts[way.name] = caught.value.text
    assert len(set(texts.values())) == 1, texts


@under("own")
def test_a_sandbox_that_is_not_there(way: Way) -> None:
    if isinstance(way, Sdk):
        pytest.skip(f"{way.name}: it calls in the sandbox that it has")
    with pytest.raises(Refusal) as caught:
        way.call(*LISTS, sandbox="sbx-nothing")
    assert caught.value.code in ("not_found", "") and caught.value.exit_code in (1, 0)
    assert "sbx-nothing" in caught.value.text
