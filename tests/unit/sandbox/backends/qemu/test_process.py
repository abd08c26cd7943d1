"""What a guest does with its vsock device, in its own time."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from agentd.model.errors import BackendLost, SandboxError
from agentd.model.result import CauseCode
from agentd.sandbox.backends.qemu import process as module
from agentd.sandbox.backends.qemu.process import QemuProcess
from agentd.sandbox.backends.qemu.qmp import QmpError
from agentd.sandbox.backends.vm.ending import Ending, MachineEnded


class Slow(QemuProcess):
    """Whose guest lets go of a device when it likes to."""

    def __init__(self) -> None:
        keeper = SimpleNamespace(folder="/nowhere", release=lambda _: self.done.append("release"))
        super().__init__(keeper, 1, None, None)  # type: ignore[arg-type]
        self.done: list[str] = []
        self.lets_go = False
        self.waits = 0
        self.has_ended = False

    @property
    def _monitor(self) -> Any:
        return SimpleNamespace(wait_event=self._event)

    def wait(self, seconds: float) -> bool:
        self.waits += 1
        return self.has_ended

    def execute(self, command: str, arguments: Any = None, **_: Any) -> dict[str, Any]:
        if command == "device_del" and "device_del" in self.done:
            raise QmpError(command, "GenericError", "it is being unplugged")
        self.done.append(command)
        return {}

    def _event(self, names: object, seconds: float, **fields: object) -> dict[str, object]:
        if self.has_ended:
            raise BackendLost("qemu is gone")
        if not self.lets_go:
            raise SandboxError("qemu did not answer in time")
        assert fields == {"device": "vsock0"}
        return {}

    def _attach_vsock(self) -> None:
        self.done.append("attach")


def test_a_device_that_is_let_go_of_late_is_plugged_in_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.streams, "open_stream", lambda *_: "stream")
    process = Slow()
    monkeypatch.setattr(process, "_sockets", SimpleNamespace(place=module.contextlib.nullcontext))
    for _ in range(2):  # also when it is asked again
        with pytest.raises(SandboxError, match="did not answer in time"):
            process.detach_vsock()
        assert process.vsock_stream(1.0) == "stream"  # type: ignore[comparison-overlap]
    assert process.done == ["device_del"]
    assert process.waits == 2  # whether it ends: no stream waits for that
    process.lets_go = True
    for _ in range(2):
        assert process.vsock_stream(1.0) == "stream"  # type: ignore[comparison-overlap]
    assert process.done == ["device_del", "release", "chardev-remove", "attach"]


def test_one_that_has_ended_with_its_device_unplugged_says_how(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check(where: str, seconds: float, check: Callable[[], None]) -> None:
        check()

    monkeypatch.setattr(module.streams, "open_stream", check)
    process = Slow()
    monkeypatch.setattr(process, "_sockets", SimpleNamespace(place=module.contextlib.nullcontext))
    monkeypatch.setattr(process, "_seen_ending", lambda: Ending(CauseCode.OOM, "memory ran out"))
    with pytest.raises(SandboxError, match="did not answer in time"):
        process.detach_vsock()
    process.has_ended = True
    with pytest.raises(MachineEnded, match="memory ran out"):
        process.vsock_stream(1.0)
