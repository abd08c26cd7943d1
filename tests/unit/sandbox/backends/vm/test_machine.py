"""A machine's end, whatever of it fails."""

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from agentd.model.errors import SandboxError
from agentd.sandbox.backends.vm.machine import MachineWall


class Machine(MachineWall[Any]):
    def open_stream(self) -> socket.socket:
        raise NotImplementedError

    _own_stream = open_stream

    def _check_snapshot(self, folder: str) -> None: ...

    def _write_snapshot(self, folder: str) -> None: ...


def test_a_network_that_cannot_be_closed_keeps_no_volume_and_no_group() -> None:
    freed = []

    def hold_on() -> None:
        raise SandboxError("the relay holds on")

    process = SimpleNamespace(end=lambda: freed.append("process"))
    group = SimpleNamespace(remove=lambda: freed.append("group"), controllers=())
    wall = Machine(process, group, {}, pid=1, memory=1, ceiling=1)  # type: ignore[arg-type]
    wall.attach_leases([SimpleNamespace(close=lambda: freed.append("volume"))])  # type: ignore[list-item]
    wall._network = SimpleNamespace(close=hold_on)  # type: ignore[assignment]
    with pytest.raises(SandboxError, match="holds on"):
        wall.kill()
    assert freed == ["process", "volume", "group"]
    wall.kill()
    assert len(freed) == 3
