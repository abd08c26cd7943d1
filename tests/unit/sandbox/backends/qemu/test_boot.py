"""A guest in which nobody listens: QEMU takes what is sent to it all the same."""

import socket

import pytest

from agentd.model.errors import SandboxError
from agentd.sandbox.backends.qemu import backend
from agentd.transport import v1


class Deaf:
    """A machine whose serial port is connected, and read by nobody."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()

    def serial_stream(self, seconds: float) -> socket.socket:
        return self.theirs

    def wait(self, timeout: float | None) -> bool:
        return False


def test_a_guest_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "BOOT_SECONDS", 0.1)
    monkeypatch.setattr(v1, "GRACE", 0.1)
    deaf = Deaf()
    with deaf.ours, pytest.raises(SandboxError, match=r"does not answer .*agentd image build"):
        backend._await_agent(deaf)  # type: ignore[arg-type]
    assert deaf.theirs.fileno() == -1
