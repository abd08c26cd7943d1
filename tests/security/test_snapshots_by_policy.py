"""Threat: a caller has by a snapshot what they may not make anew.

Control: the policy sees what the snapshot was taken of, and which one it is.
"""

import re
import signal
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, bundle, running, until

from agentd import Sandbox
from agentd.model.errors import AgentdError
from agentd.policy import source

PAGE = Path(__file__).parents[2] / "docs/policy.md"
ALLOW = 'decision := {"allow": true}'


def rules() -> str:
    """Those of the page, without the head that each has."""
    section = PAGE.read_text().partition("### Snapshots")[2].partition("\n## ")[0]
    (found,) = re.findall(r"~~~rego\n(.*?)~~~", section.partition("### ")[0], re.DOTALL)
    return str(found).partition("import rego.v1\n")[2]


def reload(daemon: Daemon, rules: str) -> None:
    after = source.read(bundle(daemon.folder, rules)).digest
    taken = daemon.log.count(b"the configuration is taken over")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: after in [r.fields["after"] for r in daemon.records(kind="policy_changed")])
    until(lambda: daemon.log.count(b"the configuration is taken over") > taken)


def test_a_snapshot_is_refused_by_its_id_through_each_door() -> None:
    with running(policy=ALLOW) as daemon:
        box = daemon.sandbox()
        ours, other = (
            daemon.ask("POST", f"/v1/sandboxes/{box}/snapshot").json["id"] for _ in range(2)
        )
        key = {"Idempotency_Key": "first"}
        made = daemon.ask("POST", "/v1/sandboxes", {"snapshot": ours}, **key)
        assert made.status == 201
        reload(daemon, rules())
        for headers in ({}, key):
            refused = daemon.ask("POST", "/v1/sandboxes", {"snapshot": ours}, **headers)
            assert "sandboxes are made anew here" in refused.json["cause"]
        with pytest.raises(AgentdError, match="sandboxes are made anew here"):
            Sandbox.create(url=daemon.url, snapshot=ours)
        ran = daemon.cli("create", "--snapshot", ours)
        assert b"sandboxes are made anew here" in ran.stderr
        daemon.sandbox()
        reload(daemon, f'decision := {{"allow": input.parameters.snapshot in {{"", "{other}"}}}}')
        assert daemon.ask("POST", "/v1/sandboxes", {"snapshot": ours}).code == "policy_denied"
        daemon.sandbox(snapshot=other)


LABELS = """decision := {"allow": false, "reasons": ["no snapshot is released"]} if {
	input.capability.name == "sandbox.create.v1"
	input.parameters.snapshot != ""
	input.sandbox.labels.job == "release"
} else := {"allow": true}"""


def test_its_labels_are_judged_as_those_of_one_that_is_made_of_it() -> None:
    """The next daemon's, and those of a fork, too."""
    label = {"labels": {"job": "release"}}
    with running(policy=LABELS) as daemon:
        anew = daemon.sandbox()
        snapshot = daemon.ask("POST", f"/v1/sandboxes/{anew}/snapshot").json["id"]
        made = daemon.sandbox(snapshot=snapshot)
        (fork,) = daemon.ask("POST", f"/v1/sandboxes/{made}/fork", {"count": 1}).json
        for _ in range(2):
            for box in (made, fork["id"]):
                refused = daemon.ask("PATCH", f"/v1/sandboxes/{box}", label)
                assert "no snapshot is released" in refused.json.get("cause", "")
            assert daemon.ask("PATCH", f"/v1/sandboxes/{anew}", label).status == 200
            daemon.stop()
            daemon.start()
