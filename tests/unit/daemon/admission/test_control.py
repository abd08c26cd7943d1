"""Policy, audit and receipts of one state directory: opened, reloaded, closed."""

import json
import os

import pytest
from tests.unit.daemon.known import act

from agentd.audit import read
from agentd.audit.errors import AuditLocked
from agentd.audit.verify import verify
from agentd.capability.call import CallContext
from agentd.capability.registry import Registry
from agentd.daemon.admission.control import AdmissionControl
from agentd.daemon.config import schema
from agentd.daemon.config.values import Bundle, Sink, Size
from agentd.model import context
from agentd.model.audit import Kind
from agentd.model.capability import CallFailed
from agentd.model.errors import AgentdError, InvalidInput, PolicyDenied
from agentd.policy import learning
from agentd.policy.errors import BundleError
from agentd.policy.store import PinMismatch

AUDIT = schema.AuditSettings()
NO_POLICY = schema.PolicySettings(bundle=None)


@pytest.fixture
def bundle(tmp_path):
    """Writes one that allows or does not; its folder."""

    def write(name="bundle", *, allow=True):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        rule = "true" if allow else "false"
        text = f'package agentd\n\nimport rego.v1\n\ndecision := {{"allow": {rule}}}\n'
        (folder / "base.rego").write_text(text)
        manifest = {"name": name, "modules": ["base.rego"], "data": []}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        for file in folder.iterdir():
            file.chmod(0o644)
        return Bundle.of(str(folder))

    return write


@pytest.fixture
def control(tmp_path):
    opened = []

    def make(policy=NO_POLICY, audit=AUDIT, **options):
        opened.append(AdmissionControl(str(tmp_path / "state"), policy, audit, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def kinds(tmp_path):
    return [r.kind for r in read.records(str(tmp_path / "state/audit"))]


def test_a_shipped_policy_is_in_force_by_its_name(control):
    made = control(schema.PolicySettings())
    assert made.policy.digest.startswith("sha256:")
    assert made.gate.open(act()).decision.bundle == made.policy.digest


def test_the_state_directory_has_it_all_and_nobody_else_reads_it(control, tmp_path):
    control(schema.PolicySettings())
    state = tmp_path / "state"
    assert {p.name for p in state.iterdir()} == {
        "audit", "audit.head", "policy", "receipts", "receipt.key", "receipt.key.pub",
    }  # fmt: skip
    for folder in ("audit", "policy", "receipts"):
        assert (state / folder).stat().st_mode & 0o077 == 0
    assert (state / "receipt.key").stat().st_mode & 0o077 == 0


def test_the_key_stays_over_its_lives(control):
    first = control()
    first.close()
    assert control().key.id == first.key.id


def test_a_second_one_is_refused_and_leaves_nothing_open(control):
    control()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(AuditLocked):
            control()
    # The first has one or two more open while its writer is at work.
    assert abs(len(os.listdir("/proc/self/fd")) - before) < 5


def test_shared_ones_write_to_one_log(control, tmp_path):
    one, other = control(shared=True), control(shared=True)
    for each in (one, other, one):
        each.gate.open(act())
    assert kinds(tmp_path) == ["opened", "admission", "admission", "admission"]
    assert verify(str(tmp_path / "state/audit")).ok
    assert one.counts == {}


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        (schema.PolicySettings(bundle=Bundle("/nowhere")), BundleError),
        (schema.PolicySettings(sha256="0" * 64), PinMismatch),
    ],
)
def test_a_policy_that_cannot_be_had_leaves_nothing_open(control, policy, error):
    with pytest.raises(error):
        control(policy)
    control()  # the log is free


class TestReload:
    def test_another_policy_holds_from_then_on_and_is_written_down(self, control, bundle, tmp_path):
        made = control(schema.PolicySettings(bundle=bundle()))
        before = made.policy.digest
        made.reload(schema.PolicySettings(bundle=bundle("other", allow=False)))
        with pytest.raises(PolicyDenied):
            made.gate.open(act())
        after = made.policy.digest
        made.close()
        *_, changed, denied = read.records(str(tmp_path / "state/audit"))
        assert (changed.kind, denied.kind) == (Kind.POLICY_CHANGED, Kind.DENIAL)
        assert changed.fields == {"before": before, "after": after}

    def test_one_that_cannot_be_had_leaves_the_old_one(self, control, bundle, tmp_path):
        made = control(schema.PolicySettings(bundle=bundle(allow=False)))
        for wrong in (
            schema.PolicySettings(bundle=Bundle("/nowhere")),
            schema.PolicySettings(bundle=bundle("other"), sha256="0" * 64),
        ):
            with pytest.raises(AgentdError):
                made.reload(wrong)
        with pytest.raises(PolicyDenied):
            made.gate.open(act())
        made.close()
        assert Kind.POLICY_CHANGED not in kinds(tmp_path)

    def test_from_none_to_one_and_back(self, control, bundle, tmp_path):
        made = control()
        assert made.policy is None
        made.reload(schema.PolicySettings(bundle=bundle(allow=False)))
        with pytest.raises(PolicyDenied):
            made.gate.open(act())
        made.reload(NO_POLICY)
        made.gate.open(act())
        made.reload(NO_POLICY)
        made.close()
        assert kinds(tmp_path).count(Kind.POLICY_CHANGED) == 2

    def test_a_policy_that_came_with_it_ends_with_the_rest(self, control, bundle):
        """Its workers are processes: the test counts those that are left behind."""
        made = control()
        made.reload(schema.PolicySettings(bundle=bundle()))
        made.gate.open(act())
        made.close()

    def test_a_pin_that_fits_is_taken(self, control, bundle):
        made = control()
        where = bundle()
        made.reload(schema.PolicySettings(bundle=where))
        made.reload(schema.PolicySettings(bundle=where, sha256=made.policy.digest))
        made.reload(schema.PolicySettings(bundle=where, sha256=made.policy.digest[7:].upper()))


def test_what_happens_beside_requests_is_noted(control, tmp_path):
    made = control()
    with context.request("req-1"):
        made.note(Kind.SANDBOX_CREATED, "alice", "sbx-1", backend="linux")
    made.close()
    *_, record = read.records(str(tmp_path / "state/audit"))
    assert (record.kind, record.principal, record.sandbox, record.request) == (
        "sandbox_created",
        "alice",
        "sbx-1",
        "req-1",
    )
    assert record.fields == {"backend": "linux"}


def test_its_log_is_counted(control):
    made = control()
    made.gate.open(act())
    made.close()
    assert made.counts["records"] == 2 and made.counts["lost"] == 0


def test_records_go_to_the_sinks_too(control, capfd):
    made = control(audit=schema.AuditSettings(sinks=(Sink.of("stdout"),)))
    made.gate.open(act())
    made.close()
    sent = [json.loads(line)["kind"] for line in capfd.readouterr().out.splitlines()]
    assert sent == ["opened", "admission"]


def test_old_files_go_as_the_configuration_says(control, tmp_path):
    made = control(audit=schema.AuditSettings(file=Size(2000), files=2))
    for _ in range(50):
        made.gate.open(act())
        made.log.append(_event())
    made.close()
    assert len(list((tmp_path / "state/audit").glob("audit-*.jsonl"))) == 2
    assert "retired" in kinds(tmp_path)


def _event():
    from agentd.model.audit import Event

    return Event(kind=Kind.KEY_CREATED, principal="alice")


def test_http_fetch_reaches_what_is_configured_and_no_others_does(control):
    made = control(
        capabilities=schema.CapabilitySettings(
            fetch_hosts=("example.org",), fetch_networks=("10.1.0.0/16",)
        )
    )
    usual = Registry().get("http.fetch.v1")
    configured = made.registry.get("http.fetch.v1")
    assert configured.about == usual.about
    for url, code in (
        ("http://example.com/", "host_refused"),
        ("http://a.invalid/", "host_refused"),
    ):
        with pytest.raises(CallFailed) as caught:
            configured.run(CallContext({"url": url}, request_id="r", timeout=1.0), None)
        assert caught.value.code == code
        with pytest.raises(CallFailed) as caught:
            usual.run(CallContext({"url": "http://a.invalid/"}, request_id="r", timeout=1.0), None)
        assert caught.value.code != code


@pytest.mark.parametrize(
    "wrong", [{"fetch_hosts": ("http://x/",)}, {"fetch_networks": ("10.1.0.0/99",)}]
)
def test_hosts_and_networks_that_are_none_are_refused(control, wrong):
    with pytest.raises(InvalidInput):
        control(capabilities=schema.CapabilitySettings(**wrong))
    control()  # nothing of it is left open


def test_what_is_asked_is_noted_for_who_learns(control, tmp_path, monkeypatch):
    path = str(tmp_path / "seen")
    open(path, "xb").close()
    monkeypatch.setenv(learning.VARIABLE, path)
    made = control()
    made.gate.open(act("fs.read.v1"))
    assert [a.capability["name"] for a in learning.recorded(path)] == ["fs.read.v1"]
