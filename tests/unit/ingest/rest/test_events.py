"""The feed of events over HTTP: who follows it is still who may."""

from pathlib import Path

import pytest
from tests.unit.ingest.fake import KEYS
from tests.unit.ingest.harness import Running

from agentd.ingest.web.limits import WebLimits
from agentd.model.principal import Principal

BEAT = b":\n\n"
MANY = 200


def test_a_feed_ends_once_its_key_is_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no end of its own, and would tell whoever stole the key everything from then on."""
    monkeypatch.setitem(KEYS, "agd_gone", Principal("alice", frozenset(("read",)), "key"))
    with Running(tmp_path, WebLimits(heartbeat=0.05)) as running, running.raw() as client:
        client.sendall(
            b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
            b"X-API-Key: agd_gone\r\n\r\n"
        )
        heard = b""
        while heard.count(BEAT) < 5:  # it is asked about now and then, and goes on
            heard += client.recv(4096)
        monkeypatch.delitem(KEYS, "agd_gone")
        while heard.count(BEAT) < MANY and (part := client.recv(4096)):
            heard += part
    assert heard.count(BEAT) < MANY, "it goes on"
