"""The daemon's end of its supervisor, by a clock of the test's own."""

import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from agentd.model.errors import BackendLost, SandboxError
from agentd.sandbox.supervisor import client


def test_one_that_a_busy_machine_takes_half_a_minute_to_start_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now = str(tmp_path / "supervisor.sock"), [0.0]
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 30 and not os.path.exists(path):
            listener.bind(path)
            listener.listen()

    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(client, "_start", lambda path: None)
    with listener, client._connected(path, client._START_SECONDS) as ours:
        assert ours.getpeername() == path


def test_who_tries_again_by_itself_is_told_in_ten_seconds_that_none_comes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, link = [0.0], Mock(spec=client.SupervisorLink)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(client, "_start", lambda path: None)
    with pytest.raises(SandboxError, match="did not come up"):
        client.reconnect(link, str(tmp_path / "supervisor.sock"))
    assert now[0] == pytest.approx(10, abs=1)


def test_want_of_memory_for_a_request_is_not_the_end_of_all_sandboxes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = client.SupervisorLink(ours, lambda *_: None)
    error = OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
    monkeypatch.setattr(client.wire, "send", Mock(side_effect=error))
    try:
        with pytest.raises(SandboxError, match="the supervisor could not be sent") as caught:
            link.ask("list")
    finally:
        link.close()
        theirs.close()
    assert not isinstance(caught.value, BackendLost) and caught.value.remediation
