"""A supervisor that stands still is told of, whatever it is that shows it."""

import socket
import struct

import pytest

from agentd.daemon.sandboxes.supervision import Supervision
from agentd.model.errors import SandboxError
from agentd.sandbox.supervisor import client


def test_a_supervisor_that_reads_nothing_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_SEND_TIMEOUT", struct.pack("ll", 0, 1000))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = client.SupervisorLink(ours, lambda _id, _reason: None)
    try:
        supervision = Supervision(link, "", lambda: 0, lambda: None, lambda *_, **__: None)
        with pytest.raises(SandboxError, match="takes no request"):
            while True:
                link.tell("renew")
        assert not supervision.trouble
        with pytest.raises(SandboxError, match="takes no request"):
            supervision.look()
        assert supervision.trouble == "its supervisor does not answer"
    finally:
        theirs.close()
        link.close()
