"""The keeper's own end of its socket, where it can open no more."""

import errno
import os
import signal
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from agentd.guest.zygote.messages import send
from agentd.sandbox.backends.child import receive
from agentd.sandbox.backends.vm import children, keeper

SECONDS = 60.0


@pytest.fixture
def asked() -> Iterator[tuple[keeper.KeeperServer, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        server = keeper.KeeperServer(theirs, None, b"")  # type: ignore[arg-type]
        yield server, ours
        server._selector.close()


def test_the_end_of_what_was_started_is_seen_without_a_further_descriptor(
    asked: tuple[keeper.KeeperServer, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, ours = asked

    def start(*_: object) -> children.Child:
        pid = os.posix_spawn("/bin/sleep", ["sleep", "600"], {})
        return children.Child(pid, os.pidfd_open(pid), [])

    def short(fd: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def told(**request: Any) -> tuple[dict[str, object], list[int]]:
        send(ours, {"n": 1, "vm": 1, **request})
        server._request()
        return receive(ours, SECONDS, "keeper")

    monkeypatch.setattr(children, "program_cell", lambda *_: SimpleNamespace())
    monkeypatch.setattr(children, "start_program", start)
    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", short)
        answer, fds = told(op="start")
    assert answer.get("ok") is True, answer
    signal.pidfd_send_signal(fds[0], signal.SIGKILL)
    os.close(fds[0])
    while server._vms[1].monitor:
        for key, _ in server._selector.select(SECONDS):
            key.data()
    assert told(op="look")[0]["status"] == -signal.SIGKILL
    told(op="end")
