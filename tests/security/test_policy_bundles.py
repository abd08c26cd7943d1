"""Threat: a policy that breaks, or is not the one that was looked at, lets something through.

Controls: an answer that is not exactly a decision is none, and refuses ("undecided"); what a policy
is asked is bounded; a bundle is known by its digest, which the daemon, and each caller, can pin.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, bundle, fixture, running, until

from agentd.policy import source

# What each path asks for is named after it.
BROKEN = """
decision := {"allow": 1 / 0 > 0} if {
	input.parameters.path == "zero"
} else := {"allow": "perhaps"} if {
	input.parameters.path == "word"
} else := {"allow": 1} if {
	input.parameters.path == "number"
} else := {"allow": null} if {
	input.parameters.path == "null"
} else := true if {
	input.parameters.path == "bare"
} else := [{"allow": true}] if {
	input.parameters.path == "list"
} else := {"allow": true, "also": true} if {
	input.parameters.path == "more"
} else := {"allow": true, "obligations": {"level": "strong"}} if {
	input.parameters.path == "level"
} else := {"allow": true, "obligations": {"limits": {"memory": -1}}} if {
	input.parameters.path == "limit"
} else := {"allow": true, "reasons": "because"} if {
	input.parameters.path == "reasons"
} else := {"allow": true, "obligations": {"no_network": "yes"}} if {
	input.parameters.path == "network"
} else := {"allow": true} if {
	not input.parameters.path == "nothing"
}
"""
CASES = (
    "zero word number null bare list more level limit reasons network nothing".split()  # noqa: SIM905
)
ALLOW = 'decision := {"allow": true}'
DENY = 'decision := {"allow": false, "reasons": ["test.no: never"]}'
# Never answers: exponential in the length of what it is given.
SLOW = """
decision := {"allow": true} if {
	input.parameters.path != "slow"
} else := {"allow": true} if {
	count([x | some a in numbers.range(1, 3000); some b in numbers.range(1, 3000); x := a * b]) > 1
}
"""

daemon = fixture(policy=BROKEN)


@pytest.mark.parametrize("case", CASES)
def test_an_answer_that_is_none_refuses(daemon: Daemon, case: str) -> None:
    alice = daemon.key("alice")
    answer = daemon.call("fs.list.v1", {"path": case}, key=alice)
    assert (answer.status, answer.code) == (503, "policy_undecided")
    record = daemon.until_recorded(kind="undecided", request=answer.headers["x-request-id"])
    assert (record.principal, record.capability) == ("alice", "fs.list.v1")
    assert record.fields["undecided"] and record.fields["bundle"].startswith("sha256:")
    # The daemon, and its policy, go on.
    assert daemon.call("fs.list.v1", {"path": "/"}, key=alice).status == 200
    kinds = {r.kind for r in daemon.records(request=record.request)}
    assert kinds == {"undecided"}  # nothing was admitted, and nothing begun


def test_nor_does_it_let_through_what_comes_by_other_ways(daemon: Daemon) -> None:
    alice = daemon.key("alice")
    box = daemon.sandbox(alice)
    for method, path in (("GET", "files"), ("GET", "files/list"), ("PUT", "files")):
        answer = daemon.ask(
            method,
            f"/v1/sandboxes/{box}/{path}?path=zero",
            b"x" if method == "PUT" else None,
            key=alice,
        )
        assert answer.code == "policy_undecided", path


def test_one_that_takes_for_ever_is_ended_and_refuses() -> None:
    with running(policy=SLOW) as daemon:
        for _ in range(3):
            answer = daemon.call("fs.list.v1", {"path": "slow"})
            assert answer.code == "policy_undecided"
            assert daemon.call("fs.list.v1", {"path": "/"}).status == 200


@pytest.mark.parametrize("where", ["parameters", "labels"])
def test_a_question_of_ten_megabytes_is_refused(daemon: Daemon, where: str) -> None:
    large = "x" * (10 << 20)
    if where == "parameters":
        answer = daemon.call("python.exec.v1", {"code": large})
        assert (answer.status, answer.code) == (413, "too_large")  # every capability's bound
        answer = daemon.call("fs.write.v1", {"path": "a", "content": large})
    else:
        answer = daemon.call("fs.list.v1", {"path": "/"}, create={"labels": {"a": large}})
    assert answer.code in ("policy_undecided", "invalid_input", "too_large"), answer.body[:500]
    assert len(answer.body) < 2000
    assert daemon.call("fs.list.v1", {"path": "/"}).status == 200
    assert all(len(str(record)) < 5000 for record in daemon.records())


def test_a_caller_gets_the_policy_that_it_expects_or_none(daemon: Daemon) -> None:
    digest = source.read(str(daemon.folder / "policy")).digest
    asked = ("fs.list.v1", {"path": "/"})
    assert daemon.call(*asked, bundle=digest).json["decision"]["bundle"] == digest
    for other in ("sha256:" + "0" * 64, digest.upper(), digest[:-1], "x" * 10_000, "\n"):
        answer = daemon.call(*asked, bundle=other)
        assert (answer.status, answer.code) == (403, "policy_denied")
        record = daemon.until_recorded(kind="denial", request=answer.headers["x-request-id"])
        assert "the caller expects the policy" in record.fields["reasons"][0]


# --- the daemon's own pin ---


@pytest.fixture
def pinned() -> Iterator[Daemon]:
    """One that was started with the digest of its bundle, which allows all."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="agentd-") as name:
        folder = Path(name)
        where = bundle(folder, ALLOW)
        made = Daemon(folder, f'[policy]\nbundle = "{where}"\n')
        made.start("--capability-digest", source.read(where).digest)
        assert made.is_up, made.log.decode()
        try:
            yield made
        finally:
            made.end()


@pytest.mark.parametrize("form", ["sha256:{}", "{}"])
def test_with_another_digest_it_does_not_start(tmp_path: Path, form: str) -> None:
    where = bundle(tmp_path, ALLOW)
    made = Daemon(tmp_path, f'[policy]\nbundle = "{where}"\n')
    try:
        made.start("--capability-digest", form.format("0" * 64))
        assert not made.is_up and made.process is not None
        assert made.process.returncode == 125
        text = made.log.decode()
        assert "is not the one that is expected" in text and source.read(where).digest in text
    finally:
        made.end()


def test_with_a_digest_and_no_policy_it_does_not_start(tmp_path: Path) -> None:
    made = Daemon(tmp_path, '[policy]\nbundle = "none"\n')
    try:
        made.start("--capability-digest", "0" * 64)
        assert not made.is_up and made.process is not None and made.process.returncode == 2
    finally:
        made.end()


def test_a_reload_takes_over_no_other(pinned: Daemon) -> None:
    before = pinned.call("fs.list.v1", {"path": "/"}).json["decision"]["bundle"]
    bundle(pinned.folder, DENY)
    other = bundle(pinned.folder, DENY, "other")
    for config in (
        f'[policy]\nbundle = "{pinned.folder}/policy"\n',
        f'[policy]\nbundle = "{other}"\n',
        f'[policy]\nbundle = "{other}"\nsha256 = "{source.read(other).digest[7:]}"\n',
        '[policy]\nbundle = "permissive"\n',
        '[policy]\nbundle = "none"\n',
    ):
        refused = pinned.log.count(b"the configuration is not taken over")
        pinned.configure(config)
        assert pinned.process is not None
        pinned.process.send_signal(signal.SIGHUP)
        until(lambda: pinned.log.count(b"the configuration is not taken over") > refused)  # noqa: B023
        answer = pinned.call("fs.list.v1", {"path": "/"})
        assert answer.json["decision"]["bundle"] == before, config
    assert pinned.records(kind="policy_changed") == []


def test_without_a_pin_a_reload_is_taken_and_written_down() -> None:
    with running(policy=ALLOW) as daemon:
        assert daemon.call("fs.list.v1", {"path": "/"}).status == 200
        after = source.read(bundle(daemon.folder, DENY)).digest
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        record = daemon.until_recorded(kind="policy_changed")
        assert record.fields["after"] == after != record.fields["before"]
        until(lambda: b"the configuration is taken over" in daemon.log)
        assert daemon.call("fs.list.v1", {"path": "/"}).code == "policy_denied"


def test_one_that_cannot_be_written_down_is_not_taken() -> None:
    with running(policy=ALLOW) as daemon:
        assert daemon.call("fs.list.v1", {"path": "/"}).status == 200
        bundle(daemon.folder, DENY)
        (log,) = Path(daemon.audit).glob("audit-*.jsonl")
        away = log.rename(daemon.folder / "away")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: b"the configuration is not taken over" in daemon.log)
        away.rename(log)
        until(lambda: daemon.call("fs.list.v1", {"path": "/"}).code != "audit_error")
        assert daemon.call("fs.list.v1", {"path": "/"}).status == 200
        assert daemon.records(kind="policy_changed") == []
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: b"the configuration is taken over" in daemon.log)
        assert len(daemon.records(kind="policy_changed")) == 1
        assert daemon.call("fs.list.v1", {"path": "/"}).code == "policy_denied"


def test_one_that_does_not_compile_leaves_the_old_one() -> None:
    with running(policy=DENY) as daemon:
        bundle(daemon.folder, "decision := {{")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: b"the configuration is not taken over" in daemon.log)
        assert daemon.call("fs.list.v1", {"path": "/"}).code == "policy_denied"
        assert daemon.records(kind="policy_changed") == []
