"""What a machine is told first, and that one which was not told is not used."""

import json
import socket
import threading
from collections.abc import Callable

import pytest

from agentd.guest import wire
from agentd.model.errors import SandboxError
from agentd.model.limits import Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.vm.handshake import DeviceMissing, set_up, settings

SPEC = SandboxSpec(hostname="box", env={"A": "b"})
HELLO = b'{"agentd":2,"agent":"0","features":[],"boot":{}}\n'


def test_two_machines_have_nothing_random_in_common() -> None:
    one, two = (settings(SPEC, Limits(), None) for _ in range(2))
    for name in ("entropy", "machine_id", "boot_id"):
        assert one[name] != two[name]
    assert one["hostname"] == "box"
    assert one["env"] == {"A": "b"}


def test_only_limits_that_are_there_are_asked_for() -> None:
    fields = settings(SPEC, Limits(memory=1 << 26, cpus=0.5), None)
    assert fields["limits"] == {"memory": 1 << 26}
    assert fields["cpus"] == 0.5
    assert "net" not in fields
    assert "cpus" not in settings(SPEC, Limits(), None)


@pytest.mark.parametrize(("user", "uid"), [(None, 1000), ("sandbox", 1000), ("root", 0)])
def test_who_commands_are(user: str | None, uid: int) -> None:
    assert settings(SandboxSpec(user=user), Limits(), None)["user"] == uid


def _guest(answer: Callable[[dict[str, object]], dict[str, object]]) -> socket.socket:
    """A stream to an agent that answers one request."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            theirs.recv(len(wire.HELLO), socket.MSG_WAITALL)
            theirs.sendall(HELLO)
            header = theirs.recv(9, socket.MSG_WAITALL)
            size, channel = int.from_bytes(header[:4]), int.from_bytes(header[5:])
            request = json.loads(theirs.recv(size, socket.MSG_WAITALL))
            payload = json.dumps(answer(request)).encode()
            frame = len(payload).to_bytes(4) + bytes([wire.EVENT]) + channel.to_bytes(4)
            theirs.sendall(frame + payload)
            theirs.recv(1)

    threading.Thread(target=serve).start()
    return ours


def test_the_controls_that_hold_come_back() -> None:
    seen: list[dict[str, object]] = []

    def answer(request: dict[str, object]) -> dict[str, object]:
        seen.append(request)
        return {"event": "result", "controls": ["entropy", "clock"]}

    assert set_up(_guest(answer), settings(SPEC, Limits(), None), 10) == ["entropy", "clock"]
    assert seen[0]["op"] == "sys.setup"
    assert seen[0]["hostname"] == "box"
    assert isinstance(seen[0]["unix_ns"], int)


def test_a_refusal_is_an_error() -> None:
    refuse = {"event": "error", "errno": 1, "message": "not allowed"}
    with pytest.raises(SandboxError, match="not permitted"):
        set_up(_guest(lambda _: refuse), settings(SPEC, Limits(), None), 10)


def test_a_device_that_is_not_there_yet_is_told_apart() -> None:
    refuse = {"event": "error", "errno": 19, "message": "network: no such device"}
    with pytest.raises(DeviceMissing):
        set_up(_guest(lambda _: refuse), settings(SPEC, Limits(), {"address": "x"}), 10)
    with pytest.raises(DeviceMissing):
        fields = settings(SPEC, Limits(), None) | {"root": {"disk": "image"}}
        set_up(_guest(lambda _: refuse), fields, 10)
    with pytest.raises(SandboxError) as caught:
        set_up(_guest(lambda _: refuse), settings(SPEC, Limits(), None), 10)
    assert not isinstance(caught.value, DeviceMissing)


def test_an_agent_that_never_answers_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(SandboxError):
        set_up(ours, settings(SPEC, Limits(), None), 0.05)
