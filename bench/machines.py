"""What a virtual machine costs: its boot, its restore, and its agent behind our vsock device."""

import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from cases import reason
from stats import Case, Row, Target, milliseconds

MIB = 1 << 20
MEMORY = 256 * MIB
BULK = 64 * MIB
TEN = 10_000_000
PORT = 6000
# In large pieces: what writes them shall not be what is measured.
TEN_OUT = ("dd", "if=/dev/zero", "bs=500000", f"count={TEN // 500_000}")
LINE = b"not json\n"
TRUE = b'{"command":"true"}\n'
# In the guest: sends, or counts, what a connection to it asks for.
PEER = f"""
import socket
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.bind((socket.VMADDR_CID_ANY, {PORT}))
s.listen(8)
print("up", flush=True)
block = bytes(65536)
while True:
    c, _ = s.accept()
    kind = c.recv(1)
    if kind == b"o":
        left = {BULK}
        while left:
            left -= c.send(block[:left])
    else:
        got = 0
        while got < {BULK}:
            got += len(c.recv(262144))
        c.send(b"k")
    c.close()
"""


def machines(rounds: int) -> list[Case]:
    """The cases ``vm`` (milliseconds) and ``vm-bulk`` (MB/s), of one run of QEMU."""
    times = Case("vm", f"a virtual machine of 256 MB, {_accelerator()}", "ms")
    bulk = Case("vm-bulk", f"bytes through it, {_accelerator()}", "MB/s")
    times.note = "cold: QEMU's start to the first answered request; restored: from the template"
    few = max(3, rounds // 20)
    try:
        with ExitStack() as stack:
            _life(times, stack, few)
            _requests(times, bulk, stack, rounds)
    except Exception as why:
        times.skipped["qemu"] = reason(why)
    _targets(times, bulk)
    return [times, bulk]


def _accelerator() -> str:
    from agentd.linux import kvm

    return "KVM" if kvm.probe().usable else "software emulation (accel=tcg)"


def _spec() -> Any:
    from agentd.model.isolation import IsolationLevel
    from agentd.model.limits import Limits
    from agentd.model.spec import SandboxSpec

    # With its own kernel's share of memory the machine has 256 MB.
    return SandboxSpec(
        isolation=IsolationLevel.MICROVM, backend="qemu", limits=Limits(memory=MEMORY)
    )


def _life(case: Case, stack: ExitStack, rounds: int) -> None:
    from agentd.sandbox.backends.qemu.backend import QemuBackend
    from agentd.sandbox.backends.vm.template import Templates

    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentd-bench-"))
    vsock = QemuBackend(Templates(folder))
    serial = QemuBackend(Templates(folder), transport="serial")
    for backend in (vsock, serial):
        stack.callback(backend.close)
        backend.launch(backend.plan(_spec())).kill()  # makes, or finds, the template
    works: dict[str, Callable[[], None]] = {
        "cold boot, vsock": lambda: _cold(vsock),
        "restored, vsock": lambda: _restored(vsock),
        "restored, virtio-serial": lambda: _restored(serial),
    }
    isolates = "a kernel of its own"
    case.rows += [Row(name, isolates) for name in works]
    for _ in range(rounds):
        for row in case.rows[: len(works)]:
            row.samples.append(milliseconds(works[row.name]))


def _cold(backend: Any) -> None:
    """Without a template: boot, plug, and ask until it answers."""
    from agentd.model.spec import ExecRequest
    from agentd.sandbox.backends.qemu import backend as module
    from agentd.sandbox.backends.qemu import process as processes
    from agentd.transport.v1 import V1Connection

    plan, monitor = backend.plan(_spec()), module._monitor()
    import msgspec

    machine = msgspec.structs.replace(plan.machine, accel=monitor.accel)
    boot = backend._boot(plan.spec, monitor)
    process = processes.start(backend._keeper(), machine, boot)
    try:
        process.attach_vsock()
        connection = V1Connection(process.vsock_stream(60.0))
        try:
            end, *_ = connection.run(ExecRequest(("true",)), None, 60.0)
            assert end.exit_code == 0, end
        finally:
            connection.close()
    finally:
        process.end()


def _restored(backend: Any) -> None:
    from agentd.sandbox.manager import connect

    wall = backend.launch(backend.plan(_spec()))
    try:
        guest = connect(wall)
        guest.call("sys.ping")
        guest.close()
    finally:
        wall.kill()


def _requests(times: Case, bulk: Case, stack: ExitStack, rounds: int) -> None:
    from agentd.model.spec import ExecRequest
    from agentd.sandbox.manager import Manager

    manager = Manager()
    stack.callback(manager.close)
    handle = manager.create(_spec())
    wall, guest = handle.wall, handle.guest
    isolates = "a kernel of its own"
    with wall.open_stream() as stream:
        stream.setblocking(True)
        for name, line in (("v1 raw round trip", LINE), ("v1 true", TRUE)):
            row = Row(name, isolates)
            for _ in range(rounds):
                row.samples.append(milliseconds(lambda line=line: _ask(stream, line)))
            times.rows.append(row)
        rows = {name: Row(name, isolates) for name in ("v1 stdout", "v2 stdout", "out", "in")}
        request = json.dumps({"command": TEN_OUT[0], "args": TEN_OUT[1:]}) + "\n"
        for _ in range(3):
            rows["v1 stdout"].samples.append(_rate(TEN, lambda: _ask(stream, request.encode())))
            rows["v2 stdout"].samples.append(_rate(TEN, lambda: _v2(guest)))
    peer = stack.enter_context(guest.start(ExecRequest(("python3", "-c", PEER))))
    next(peer.chunks())
    for _ in range(5):
        rows["out"].samples.append(_rate(BULK, lambda: _bulk(wall, b"o")))
        rows["in"].samples.append(_rate(BULK, lambda: _bulk(wall, b"i")))
    bulk.rows += list(rows.values())
    peer.kill()


def _ask(stream: socket.socket, line: bytes) -> None:
    stream.sendall(line)
    while not stream.recv(1 << 20).endswith(b"\n"):
        pass


def _v2(guest: Any) -> None:
    from agentd.model.spec import ExecRequest

    with guest.start(ExecRequest(TEN_OUT)) as running:
        assert sum(len(data) for stream, data in running.chunks() if stream == "stdout") == TEN


def _bulk(wall: Any, kind: bytes) -> None:
    from agentd.transport.dial import dial

    with dial(f"hybrid:{wall._process._sockets['vsock']}:{PORT}") as stream:
        stream.setblocking(True)
        stream.sendall(kind)
        if kind == b"i":
            stream.sendall(bytes(BULK))
            assert stream.recv(1) == b"k"
            return
        total = 0
        while data := stream.recv(1 << 20):
            total += len(data)
        assert total == BULK, total


def _rate(count: int, work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start) / 1_000_000


def _targets(times: Case, bulk: Case) -> None:
    v1, v2 = bulk.median("v1 stdout"), bulk.median("v2 stdout")
    times.targets = [
        Target("cold boot at most 3800 ms", times.median("cold boot, vsock"), 3800),
        Target("restored over vsock at most 900 ms", times.median("restored, vsock"), 900),
        Target(
            "restored over virtio-serial at most 400 ms",
            times.median("restored, virtio-serial"),
            400,
        ),
        Target("v1 true at most 9 ms", times.median("v1 true"), 9),
        Target("raw round trip at most 0.7 ms", times.median("v1 raw round trip"), 0.7),
        Target("initramfs at most 25 MB", _image_megabytes(), 25),
    ]
    bulk.targets = [
        Target("out at least 90 MB/s", bulk.median("out"), 90, at_least=True),
        Target("in at least 60 MB/s", bulk.median("in"), 60, at_least=True),
        Target("v2 at least 5x v1", v2 / v1 if v1 and v2 else None, 5, at_least=True),
    ]


def _image_megabytes() -> float | None:
    try:
        from agentd.image.store import Store

        return os.path.getsize(Store().get("default").initramfs) / 1_000_000
    except Exception:
        return None


__all__ = ["machines"]
