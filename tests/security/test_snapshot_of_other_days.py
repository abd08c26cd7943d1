"""Threat: a caller has by a snapshot, or a fork, what the configuration allows nobody any more.

Control: what either brings is asked for anew.
"""

from typing import Any

import pytest
from tests.security.daemons import Answer, Daemon, running

_NONE = '[sandbox]\nnetworks = ["none"]\n'
_BOTH = '[sandbox]\nnetworks = ["none", "host"]\n'
_RULES = '[sandbox]\nnetworks = ["none", "restricted"]\n'


def _ways(daemon: Daemon, key: str, first: str, kept: str, **more: Any) -> list[Answer]:
    """A sandbox of the snapshot, and a fork of what it was taken of."""
    fork = daemon.ask("POST", f"/v1/sandboxes/{first}/fork", {"count": 1}, key=key)
    return [daemon.ask("POST", "/v1/sandboxes", {"snapshot": kept, **more}, key=key), fork]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (_NONE, "network host is not allowed here"),
        (f'{_BOTH}[limits.max]\nmemory = "64MiB"\n', "memory of 128 MiB is more than the 64 MiB"),
        (f"{_BOTH}[limits.max]\npids = 100\n", "pids of 512 is more than the 100 allowed"),
        (f"{_BOTH}[limits.max]\ncpus = 1\n", "cpus of no bound is more than the 1 allowed"),
        (f'{_BOTH}minimum = "microvm"\n[[pool]]\nisolation = "microvm"\n', "isolation namespace"),
        (f'{_BOTH}[policy]\nbundle = "strict"\n', "does not allow alice"),
    ],
)
def test_what_a_snapshot_or_a_fork_brings_must_be_allowed_now(config: str, why: str) -> None:
    with running(config=_BOTH) as daemon:
        key = daemon.key("alice", "create", "snapshot", "net")
        first = daemon.sandbox(key, net="host", memory="128MiB")
        kept = daemon.ask("POST", f"/v1/sandboxes/{first}/snapshot", key=key).json["id"]
        assert [one.status for one in _ways(daemon, key, first, kept)] == [201, 201]
        daemon.stop()
        daemon.configure(config)
        daemon.start()
        for refused in _ways(daemon, key, first, kept):
            assert (refused.status, why in refused.json["message"]) == (403, True), refused.body


def test_a_policy_s_limits_hold_for_what_was_asked_for_by_nobody() -> None:
    """A usual limit within them is no reason to refuse, and one that is missing is."""
    with running() as daemon:
        key = daemon.key("alice", "create", "snapshot")
        made = [daemon.sandbox(key, **more) for more in ({}, {"cpus": 1, "timeout": "1h"})]
        kept = [daemon.ask("POST", f"/v1/sandboxes/{one}/snapshot", key=key) for one in made]
        daemon.stop()
        daemon.configure('[policy]\nbundle = "strict"\n')
        daemon.start()
        for what, refused in zip(
            ("snapshot", "sandbox"), _ways(daemon, key, made[0], kept[0].json["id"]), strict=True
        ):
            assert refused.json["message"] == "the policy wants cpus of at most 2"
            assert refused.json["cause"] == f"the {what} has no bound"
        ways = _ways(daemon, key, made[1], kept[1].json["id"])
        assert [one.status for one in ways] == [201, 201], ways


def test_a_network_moves_no_more_than_is_allowed_now() -> None:
    with running(config=_RULES) as daemon:
        key = daemon.key("alice", "create", "snapshot", "egress", "run")
        first = daemon.sandbox(key, net="example.com")
        kept = daemon.ask("POST", f"/v1/sandboxes/{first}/snapshot", key=key).json["id"]
        daemon.stop()
        daemon.configure(f'{_RULES}[limits.max]\nnet_bytes = "2MiB"\nnet_rate = "1KiB"\n')
        daemon.start()
        restored, forked = _ways(daemon, key, first, kept)
        assert (restored.status, forked.status) == (201, 201), (restored.body, forked.body)
        for made in (restored.json, *forked.json):
            told = made["enforcement"]["network"]["detail"]
            assert told.endswith("; 2 MiB in all; 1 KiB a second")


def test_a_snapshot_is_of_no_template() -> None:
    """Its network, and its variables, may be others: no policy knows by that name what it is."""
    with running(config='[[template]]\nname = "web"\nenv = { A = "1" }\nmax = 0\n') as daemon:
        key = daemon.key("alice", "create", "snapshot")
        first = daemon.sandbox(key, template="web")
        kept = daemon.ask("POST", f"/v1/sandboxes/{first}/snapshot", key=key).json["id"]
        restored, forked = _ways(daemon, key, first, kept, env={"A": "2"})
        assert (restored.status, restored.json["template"]) == (201, "")
        assert "template" not in restored.json["enforcement"]
        assert forked.json[0]["enforcement"]["template"]["asked"] == "web"
