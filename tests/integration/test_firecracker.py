"""Firecracker itself on a working KVM: its own programs, our image, nothing faked.

Runs wherever the probe finds a KVM that works and both programs are installed.
"""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.vm import boot

from agentd.client import build
from agentd.client.embedded_service import EmbeddedService
from agentd.client.sandbox import Sandbox
from agentd.daemon.pipeline import Pipeline
from agentd.image import build as images
from agentd.model.limits import MIB, Limits
from agentd.model.principal import local
from agentd.model.result import CauseCode
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.backends.firecracker.backend import FirecrackerBackend
from agentd.sandbox.backends.firecracker.wall import FirecrackerWall
from agentd.sandbox.manager import Manager, connect

pytestmark = [
    pytest.mark.pending_kvm,
    pytest.mark.root,
    pytest.mark.needs("firecracker", "jailer"),
]
SPEC = SandboxSpec(backend="firecracker", hostname="inside", limits=Limits(memory=128 * MIB))


@pytest.fixture(scope="module")
def backend() -> FirecrackerBackend:
    backend = FirecrackerBackend()
    found = backend.probe()
    assert found.usable, found.blockers
    return backend


@pytest.fixture(scope="module")
def wall(backend: FirecrackerBackend) -> Iterator[FirecrackerWall]:
    """One machine for the tests that leave it as it was."""
    wall = backend.launch(backend.plan(SPEC))
    yield wall
    wall.kill()


def run(wall: FirecrackerWall, *argv: str, stdin: bytes | None = None) -> bytes:
    guest = connect(wall)
    try:
        end, stdout, stderr, _ = guest.run(ExecRequest(argv), stdin=stdin)
        assert end.ok, stderr
        return stdout
    finally:
        guest.close()


def read(wall: FirecrackerWall, path: str) -> str:
    return run(wall, "cat", path).decode().strip()


def test_a_command_runs_on_a_kernel_of_its_own(wall: FirecrackerWall) -> None:
    from agentd.image.store import Store

    assert run(wall, "uname", "-r").decode().strip() == Store().get("default").kernel_release
    assert read(wall, "/proc/sys/kernel/hostname") == "inside"
    assert run(wall, "id", "-u") == b"1000\n"


def test_every_control_of_the_monitor_holds_by_the_kernels_word(wall: FirecrackerWall) -> None:
    held = {n: c.enforced for n, c in wall.enforcement.items() if n.startswith("monitor_")}
    assert len(held) == 5
    assert all(held.values()), held


def test_bulk_goes_both_ways(wall: FirecrackerWall) -> None:
    data = os.urandom(8 << 20)
    assert run(wall, "cat", stdin=data) == data


def test_restored_machines_share_no_identity(
    backend: FirecrackerBackend, wall: FirecrackerWall, tmp_path: Path
) -> None:
    run(wall, "sh", "-c", "echo kept > /workspace/file")
    wall.snapshot(str(tmp_path))
    assert read(wall, "/workspace/file") == "kept"
    clones = [backend.restore(backend.plan(SPEC), str(tmp_path)) for _ in range(2)]
    try:
        everyone = (wall, *clones)
        for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
            assert len({read(each, path) for each in everyone}) == 3
        numbers = {run(each, "head", "-c", "32", "/dev/urandom") for each in everyone}
        assert len(numbers) == 3
        assert {read(each, "/workspace/file") for each in everyone} == {"kept"}
    finally:
        for clone in clones:
            clone.kill()


def test_paused_and_resumed_it_goes_on_or_says_why_it_cannot(wall: FirecrackerWall) -> None:
    if why := wall.lacks.get("pause"):
        assert "vsock" in why
        return
    wall.pause()
    wall.resume()
    assert run(wall, "echo", "on") == b"on\n"


def test_killed_it_leaves_nothing(backend: FirecrackerBackend) -> None:
    wall = backend.launch(backend.plan(SPEC))
    folder = str(wall.save()["jail"])
    signal.pidfd_send_signal(wall._pidfd, signal.SIGKILL)
    assert wall.wait(120)
    wall.kill()
    assert not os.path.exists(folder)


def test_a_guest_that_shuts_down_ends_the_process(backend: FirecrackerBackend) -> None:
    wall = backend.launch(backend.plan(SPEC))
    try:
        guest = connect(wall)
        guest.call("sys.shutdown")
        guest.close()
        assert wall.wait(120)
        assert wall._monitor.ended().status == 0
    finally:
        wall.kill()


# --- as a caller sees it ---


@pytest.fixture
def create() -> Iterator[Callable[..., Sandbox]]:
    """``Sandbox.create`` on this wall."""
    pipeline = Pipeline(Manager())

    def create(**wanted: Any) -> Sandbox:
        spec = build.sandbox_spec(backend="firecracker", **wanted)
        service = EmbeddedService(pipeline)
        return Sandbox(service, service.adopt(pipeline.open(local("test"), spec)))

    yield create
    pipeline.manager.close()


def test_a_machine_of_the_original_agents_runs_commands(
    create: Callable[..., Sandbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images.ensure()
    overlay = boot.instead_of_the_agent(Path(boot.__file__).parent / "v1_only.py", "5000")
    initramfs = Path(image.initramfs).read_bytes() + overlay.replace(b"other\0", b"init\0\0")
    (tmp_path / "initramfs").write_bytes(initramfs)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images.build("own", kernel=image.kernel, initramfs=str(tmp_path / "initramfs"))
    with create(image="own") as sandbox:
        assert sandbox.run(["uname", "-s"]).text == "Linux\n"
        assert sandbox.run(["pwd"], cwd="/tmp").text == "/tmp\n"
        assert sandbox.run(["cat"], stdin="text").text == "text"
        assert not sandbox.run(["true"]).enforcement["identity"].enforced


def test_the_first_command_after_a_snapshot_and_a_fork_is_not_lost(
    create: Callable[..., Sandbox],
) -> None:
    with create(memory="128M") as sandbox:
        sandbox.run(["true"])
        with sandbox.snapshot():
            assert sandbox.run(["echo", "on"]).text == "on\n"
        (copy,) = sandbox.fork()
        with copy:
            assert sandbox.run(["echo", "on"]).text == "on\n"
            assert copy.run(["echo", "copy"]).text == "copy\n"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGBUS, CauseCode.OOM),
        (signal.SIGXFSZ, CauseCode.DISK_FULL),
        (signal.SIGKILL, CauseCode.BACKEND_LOST),
    ],
)
def test_its_end_is_the_cause_of_its_command(
    create: Callable[..., Sandbox], number: int, code: CauseCode
) -> None:
    with create(memory="128M") as sandbox:
        with sandbox.start(["sh", "-c", "echo on; sleep 600"]) as process:
            assert next(iter(process)).data == b"on\n"
            wall: Any = sandbox._service.handle(sandbox.id).wall  # type: ignore[attr-defined]
            signal.pidfd_send_signal(wall._pidfd, number)
            cause = process.wait().cause
        assert cause.code is code, cause
        if number != signal.SIGKILL:
            assert f"signal {int(number)}" in cause.message
