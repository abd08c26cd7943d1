"""Threat: a caller has by a snapshot what the configuration allows nobody any more.

Control: what a snapshot brings is asked for anew.
"""

import pytest
from tests.security.daemons import running

_BOTH = '[sandbox]\nnetworks = ["none", "host"]\n'


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ('[sandbox]\nnetworks = ["none"]\n', "network host is not allowed here"),
        (f'{_BOTH}[limits.max]\nmemory = "64MiB"\n', "memory of 128 MiB is more than the 64 MiB"),
    ],
)
def test_what_a_snapshot_brings_must_be_allowed_now(config: str, why: str) -> None:
    with running(config=_BOTH) as daemon:
        key = daemon.key("alice", "create", "snapshot", "net")
        first = daemon.sandbox(key, net="host", memory="128MiB")
        kept = daemon.ask("POST", f"/v1/sandboxes/{first}/snapshot", key=key).json["id"]
        wanted = {"snapshot": kept}
        assert daemon.ask("POST", "/v1/sandboxes", wanted, key=key).status == 201
        daemon.stop()
        daemon.configure(config)
        daemon.start()
        refused = daemon.ask("POST", "/v1/sandboxes", wanted, key=key)
        assert (refused.status, why in refused.json["message"]) == (403, True), refused.body
