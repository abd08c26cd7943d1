"""Calls without a daemon: in the caller's own process, beside others that do the same."""

import json
import os
import subprocess
import sys

import pytest
from tests.unit.daemon.known import ALICE

from agentd.audit import read
from agentd.audit.keypair import KeyPair
from agentd.audit.receipt import verify
from agentd.audit.receipts import find
from agentd.audit.verify import verify as verify_log
from agentd.daemon.calls import embedded
from agentd.daemon.pipeline import Pipeline
from agentd.model.api import CallBody, SandboxBody
from agentd.model.errors import InvalidInput, NotFound, PolicyDenied
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import SandboxSpec
from agentd.sandbox.manager import Manager

# Calls that need no wall: what is looked at is what is decided and written.
CALL = """
import json, sys
from agentd.capability.registry import Registry
from agentd.daemon.calls import embedded
from agentd.model.api import CallBody
from agentd.model.capability import About, Needs, Outcome
from agentd.model.errors import AgentdError
from agentd.model.principal import local

class Count:
    about = About("test.count.v1", "counts", {"type": "object", "additionalProperties": False},
                  Needs(sandbox=False))
    def run(self, call, inside):
        return Outcome({"n": 1})

embedded.shared().registry.use(Count())
for _ in range(int(sys.argv[1])):
    try:
        view = embedded.call(None, local("alice"), CallBody("test.count.v1"), None, None)
        print(json.dumps(view.receipt), flush=True)
    except AgentdError as error:
        print(json.dumps({"code": error.code}), flush=True)
"""


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "state_directory", lambda: str(tmp_path / "state"))
    monkeypatch.setenv("AGENTD_POLICY", "none")
    return str(tmp_path / "state")


def test_one_control_is_kept_for_one_policy_and_place(state, monkeypatch):
    first = embedded.shared()
    assert embedded.shared() is first and first.policy is None
    monkeypatch.delenv("AGENTD_POLICY")
    second = embedded.shared()
    assert second is not first and second.policy.digest.startswith("sha256:")
    monkeypatch.setenv("AGENTD_POLICY", "permissive")
    assert embedded.shared() is second


@pytest.mark.parametrize("name", ["relative/path", "nothing"])
def test_a_policy_that_is_none_refuses_every_call(state, monkeypatch, name):
    monkeypatch.setenv("AGENTD_POLICY", name)
    with pytest.raises(InvalidInput, match="is no policy"):
        embedded.call(None, ALICE, CallBody("fs.read.v1"), None, None)


def test_where_it_is_kept_is_beside_what_a_daemon_has(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert embedded.state_directory() == "/somewhere/agentd/embedded"


def test_a_signed_request_is_for_a_daemon(state):
    body = CallBody("fs.read.v1", signature={"key": "k"})
    with pytest.raises(InvalidInput, match="for a daemon"):
        embedded.call(None, ALICE, body, None, None)


class TestOwn:
    @pytest.fixture
    def pipeline(self):
        manager = Manager()
        yield Pipeline(manager)
        manager.close()

    @pytest.fixture
    def handle(self, pipeline):
        return pipeline.open(ALICE, SandboxSpec(isolation=IsolationLevel.NONE, backend="host"))

    def test_it_has_the_sandbox_that_the_caller_holds_and_no_other(self, pipeline, handle):
        own = embedded.OwnSandboxes(pipeline, handle)
        assert own.get(ALICE, CallBody("x.v1", sandbox=handle.id)) == (handle, {})
        for asked, held in ((handle.id, None), ("sbx-other", handle)):
            with pytest.raises(NotFound):
                embedded.OwnSandboxes(pipeline, held).get(ALICE, CallBody("x.v1", sandbox=asked))

    @pytest.mark.parametrize("wanted", [{"snapshot": "snp-1"}, {"labels": {"a": "b"}}, {"ttl": 5}])
    def test_what_is_a_daemons_is_refused(self, pipeline, wanted):
        with pytest.raises(InvalidInput, match="is for the sandboxes of a daemon"):
            embedded.OwnSandboxes(pipeline, None).plan(
                ALICE, CallBody("x.v1", create=SandboxBody(**wanted))
            )

    def test_one_that_is_made_for_a_call_ends_with_it(self, pipeline):
        own = embedded.OwnSandboxes(pipeline, None)
        create = SandboxBody(backend="host", isolation="none")
        spec, _ = own.plan(ALICE, CallBody("x.v1", create=create))
        with pytest.raises(ZeroDivisionError), own.made(ALICE, spec, {}) as handle:
            assert handle.id in pipeline.manager._handles
            raise ZeroDivisionError
        assert pipeline.manager._handles == {}


def run(home, count, policy="none"):
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
    env |= {"AGENTD_POLICY": policy}
    code = (
        f"from agentd.daemon.calls import embedded\n"
        f"embedded.state_directory = lambda: {str(home)!r}\n{CALL}"
    )
    argv = [sys.executable, "-c", code, str(count)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, env=env)


def answers(process):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return [json.loads(line) for line in out.splitlines()]


def test_many_processes_share_a_log_and_every_receipt_is_kept(tmp_path):
    processes = [run(tmp_path, 25) for _ in range(4)]
    ids = [id_ for process in processes for id_ in answers(process)]
    assert len(set(ids)) == 100
    public = KeyPair.load_or_create(str(tmp_path / "receipt.key")).public_pem()
    audit = str(tmp_path / "audit")
    assert verify_log(audit).ok
    ends = {r.request: r.position for r in read.records(audit) if r.kind == "end"}
    assert set(ends) == set(ids)
    for id_ in ids:
        envelope = find(str(tmp_path / "receipts"), id_)
        assert envelope is not None, id_
        assert verify(envelope, public).predicate.record == ends[id_]


def test_a_shipped_policy_decides_by_its_name(tmp_path):
    (answer,) = answers(run(tmp_path, 1, "strict"))
    assert answer == {"code": "policy_denied"}  # strict knows no capability of third parties
    (allowed,) = answers(run(tmp_path, 1, "permissive"))
    assert isinstance(allowed, str)


def test_a_forked_child_has_one_of_its_own(state):
    embedded.shared()
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            made = embedded.shared()
            made.gate.open(_act())
            os.write(theirs, b"ok")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        assert pipe.read() == b"ok"
    embedded.shared().gate.open(_act())
    assert verify_log(f"{state}/audit").ok


def _act():
    from tests.unit.daemon.known import act

    return act()


def test_denied_by_the_policy_it_is_refused(state, monkeypatch):
    monkeypatch.setenv("AGENTD_POLICY", "strict")
    body = CallBody("http.fetch.v1", {"url": "https://example.net/"})
    with pytest.raises(PolicyDenied, match="alice"):
        embedded.call(None, ALICE, body, None, None)
