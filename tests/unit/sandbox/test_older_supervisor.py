"""A supervisor that was started by an older agentd is there until its last sandbox ends."""

import contextlib
import socket
import threading

import pytest

from agentd.model.errors import InvalidInput, Refused
from agentd.model.mount import Mount, MountMode
from agentd.model.secret import SecretBinding
from agentd.model.spec import SandboxSpec
from agentd.sandbox.supervisor import client, remote, wire


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (SandboxSpec(net="restricted"), "networks of rules"),
        (SandboxSpec(secrets=(SecretBinding(name="T", hosts=("h.example.com",)),)), "secrets"),
        (SandboxSpec(mounts=(Mount("/v", "/v", MountMode.RW, volume="v"),)), "volumes"),
    ],
)
def test_what_a_supervisor_of_an_older_version_does_not_know_is_told(
    spec: SandboxSpec, what: str
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def answer() -> None:
        with theirs, contextlib.suppress(EOFError, OSError):
            while True:
                message, _ = wire.receive(theirs)
                unknown = InvalidInput(f"the supervisor does not know {message['op']!r}")
                wire.send(theirs, {"n": message["n"], "error": wire.encode_error(unknown)})

    thread = threading.Thread(target=answer)
    thread.start()
    link = client.SupervisorLink(ours, lambda *_: None)
    with pytest.raises(Refused, match=f"older agentd, which knows no {what}"):
        remote.RemoteBackend(link, "linux").plan(spec)
    link.close()
    thread.join()
