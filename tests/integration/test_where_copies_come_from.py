"""Of which snapshot a sandbox is, or which other one: the log, the events and the counters tell."""

import re

from tests.security.daemons import Daemon, fixture

daemon = fixture()


def test_the_log_the_events_and_the_counters_tell_where_a_copy_comes_from(daemon: Daemon) -> None:
    key = daemon.key("alice")
    first = daemon.sandbox(key)
    kept = daemon.ask("POST", f"/v1/sandboxes/{first}/snapshot", key=key).json["id"]
    restored = daemon.sandbox(key, snapshot=kept)
    made = daemon.ask("POST", f"/v1/sandboxes/{first}/fork", {"count": 8}, key=key).json
    forks = [one["id"] for one in made]
    told = {first: {}, restored: {"snapshot": kept}}
    told |= {fork: {"fork_of": first} for fork in forks}
    events = daemon.ask("GET", "/v1/events", key=key).json["events"]
    for id_, origin in told.items():
        written = daemon.until_recorded(kind="sandbox_created", sandbox=id_).fields
        (heard,) = (one["about"] for one in events if one["sandbox"] == id_)
        assert written == heard == {"backend": "linux", "level": "namespace", **origin}
    counted = daemon.ask("GET", "/metrics").body.decode()
    for source, many in (("snapshot", 1), ("fork", 8)):
        row = f'agentd_sandboxes_made_total{{backend="linux",source="{source}"}} {many}.0'
        assert row in counted.splitlines()
    # Each fork took a part of the request's time: all of them together no more than that.
    making, asking = (float(re.findall(rf"^{each} (\S+)$", counted, re.MULTILINE)[0]) for each in (
        r'agentd_sandbox_seconds_sum\{backend="linux",source="fork"\}',
        r'agentd_request_seconds_sum\{op="fork"\}',
    ))  # fmt: skip
    assert making <= asking
