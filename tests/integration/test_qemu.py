"""Real machines under QEMU: identity, pause, snapshots, ends and their reasons, and what is left.

One template is booted where the cache has none; each test restores its own machine from it.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.machine.patience import patient
from tests.supervised import supervised
from tests.vm import boot

import agentd
from agentd.client import build
from agentd.client.cli.main import main
from agentd.client.embedded_service import EmbeddedService
from agentd.client.sandbox import Sandbox
from agentd.daemon.pipeline import Pipeline
from agentd.image import build as images
from agentd.linux import process
from agentd.model.errors import AgentdError, BackendLost, Refused, SandboxError
from agentd.model.limits import MIB, Limits
from agentd.model.mount import Mount, MountMode, parse_volume, parse_workspace
from agentd.model.principal import local
from agentd.model.result import Cause, CauseCode
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.backends.cgroups import own_hierarchy
from agentd.sandbox.backends.qemu import plan
from agentd.sandbox.backends.qemu.backend import QemuBackend
from agentd.sandbox.backends.qemu.wall import QemuWall
from agentd.sandbox.backends.vm import ceiling, folders
from agentd.sandbox.backends.vm.supervisor import MachineStatus
from agentd.sandbox.backends.vm.template import Templates
from agentd.sandbox.manager import Manager
from agentd.sandbox.volumes import VolumeStore
from agentd.testing.patience import SLOWER
from agentd.transport.guest import Guest

SOURCE = os.path.dirname(os.path.dirname(agentd.__file__))
SMALL = Limits(memory=64 * MIB)
SECONDS = 120.0
HOST = """
import sys, time
from agentd.model.limits import Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.qemu.backend import QemuBackend
backend = QemuBackend()
wall = backend.launch(backend.plan(SandboxSpec(limits=Limits(memory=64 << 20))))
print(wall._process._keeper.pid, flush=True)
time.sleep(600)
"""

REAP = "from agentd.sandbox.backends.cgroups import own_hierarchy; own_hierarchy()"
USER = """
import os, pathlib
from agentd.model.limits import Limits
from agentd.model.mount import parse_workspace
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.backends.qemu.backend import QemuBackend
from agentd.sandbox.backends.vm import folders
from agentd.transport.guest import Guest
os.mkdir("work")
pathlib.Path("work/file").write_text("mounted")
spec = SandboxSpec(limits=Limits(memory=64 << 20), mounts=(parse_workspace("work"),))
backend = QemuBackend()
wall = backend.launch(backend.plan(spec))
guest = Guest(wall.open_stream, passes_descriptors=False, handshake_timeout=120)
script = "id | cut -d' ' -f1; cat file; echo; echo new > made"
print(guest.run(ExecRequest(argv=("sh", "-c", script)))[1].decode(), end="")
guest.close()
print(os.path.exists("work/made"))
wall.kill()
backend.close()
print(os.listdir(folders.base()))
"""


class Box:
    """A wall and its guest's client."""

    def __init__(self, wall: QemuWall) -> None:
        self.wall = wall
        self.guest = self._connect()

    def _connect(self) -> Guest:
        return Guest(
            self.wall.open_stream,
            passes_descriptors=False,
            handshake_timeout=SECONDS,
            answer_timeout=SECONDS,
        )

    def sh(self, script: str) -> str:
        end, out, err, _ = self.guest.run(ExecRequest(argv=("sh", "-c", script)))
        assert end.exit_code == 0, (end, out, err)
        return out.decode()

    def start(self, script: str) -> int:
        return self.guest.start_detached(ExecRequest(argv=("sh", "-c", script)))

    def reconnect(self) -> None:
        self.guest.close()
        self.guest = self._connect()

    def close(self) -> None:
        self.guest.close()
        self.wall.kill()


def _wait(condition: Callable[[], bool], seconds: float = SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def shared() -> Iterator[QemuBackend]:
    backend = QemuBackend()
    found = backend.probe()
    if not found.usable:
        pytest.skip("; ".join(blocker.what for blocker in found.blockers))
    # What the tests share is there before each is looked at for what it leaves.
    backend.launch(backend.plan(SandboxSpec(limits=SMALL))).kill()
    yield backend
    backend.close()


@pytest.fixture
def make(shared: QemuBackend) -> Iterator[Callable[..., Box]]:
    made: list[Box] = []

    def create(backend: QemuBackend = shared, **wanted: object) -> Box:
        usual = {} if "image" in wanted else {"limits": SMALL}
        spec = SandboxSpec(**(usual | wanted))  # type: ignore[arg-type]
        made.append(Box(backend.launch(backend.plan(spec))))
        return made[-1]

    yield create
    for box in made:
        box.close()


@pytest.fixture
def own(shared: QemuBackend) -> Iterator[QemuBackend]:
    """A backend whose keeper the test may kill."""
    backend = QemuBackend()
    yield backend
    backend.close()


@pytest.fixture
def restore(shared: QemuBackend) -> Iterator[Callable[[Path], Box]]:
    made: list[Box] = []

    def build(folder: Path) -> Box:
        plan = shared.plan(SandboxSpec(limits=SMALL))
        made.append(Box(shared.restore(plan, str(folder))))
        return made[-1]

    yield build
    for box in made:
        box.close()


Make = Callable[..., Box]

# --- what a machine is ---

_IDENTITY = (
    "head -c 32 /dev/urandom | base64 -w0; echo; cat /etc/machine-id"
    " /proc/sys/kernel/random/boot_id; hostname"
)


def test_two_machines_of_one_template_are_two(make: Make) -> None:
    one, two = (make(hostname=name).sh(_IDENTITY).split() for name in ("one", "two"))
    assert len(one) == len(two) == 4
    assert not set(one) & set(two)
    assert (one[3], two[3]) == ("one", "two")


def test_the_clock_is_the_hosts(make: Make) -> None:
    inside = float(make().sh("date +%s"))
    assert abs(inside - time.time()) < 30


def test_what_is_said_to_be_in_force(make: Make) -> None:
    box = make()
    said = box.wall.enforcement
    assert said["virtual_machine"].enforced
    assert "accel=" in said["virtual_machine"].detail
    assert said["network"].enforced
    assert said["identity"].enforced
    for name in ("memory", "pids", "disk", "open_files"):
        assert said[name].enforced, name
    status = Path(f"/proc/{box.wall.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert said["monitor_no_new_privs"].enforced is (fields["NoNewPrivs"] == "1") is True
    assert said["monitor_seccomp"].enforced is (fields["Seccomp"] == "2") is True
    both = "and agentd's" in said["monitor_seccomp"].detail
    assert both is (int(fields["Seccomp_filters"]) >= 2) is True
    assert said["monitor_capabilities"].detail.startswith("none in any set")
    assert int(fields["CapBnd"], 16) == 0
    assert said["monitor_capabilities"].enforced is (int(fields["CapEff"], 16) == 0) is True
    if os.getuid() == 0:
        assert said["monitor_user"].enforced
        assert "0" not in fields["Uid"].split()


def test_the_monitor_has_no_network_of_the_host(make: Make) -> None:
    wall = make().wall
    for space in ("net", "pid", "ipc", "uts"):
        inside, ours = (os.readlink(f"/proc/{pid}/ns/{space}") for pid in (wall.pid, "self"))
        assert inside != ours


def test_two_monitors_are_two_users(make: Make) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    uids = {os.stat(f"/proc/{make().wall.pid}").st_uid for _ in range(2)}
    assert len(uids) == 2


def test_the_network_of_the_host_when_asked_for(make: Make) -> None:
    box = make(net="host")
    assert "eth0" in box.sh("ls /sys/class/net")
    assert not box.wall.enforcement["network"].enforced


def test_without_it_there_is_no_card(make: Make) -> None:
    assert make().sh("ls /sys/class/net").split() == ["lo"]


# --- directories of the host's ---

with_mounts = pytest.mark.skipif(
    shutil.which("virtiofsd", path="/usr/libexec") is None, reason="virtiofsd is not installed"
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with a neighbour that is nobody's business."""
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "file").write_text("host")
    (folder / "out").symlink_to("../secret")
    return folder


@with_mounts
def test_a_workspace_of_the_hosts(make: Make, project: Path) -> None:
    box = make(mounts=(parse_workspace(str(project)),))
    assert box.sh("pwd; cat file; stat -c ' %u %g' file") == "/workspace\nhost 1000 1000\n"
    box.sh("echo new > made; mkdir sub; mv made sub/moved; rm file")
    assert (project / "sub" / "moved").read_text() == "new\n"
    assert (project / "sub" / "moved").stat().st_uid == project.stat().st_uid
    assert not (project / "file").exists()
    (project / "later").write_text("host again")
    assert box.sh("cat later") == "host again"
    assert box.wall.enforcement["mount /workspace"].enforced
    with pytest.raises(SandboxError, match="mounts"):
        box.wall.snapshot(str(project))


@with_mounts
def test_a_mount_that_is_read_only(make: Make, project: Path) -> None:
    box = make(mounts=(Mount(str(project), "/data", MountMode.RO),), user="root")
    assert box.sh("cat /data/file; pwd") == "host/workspace\n"
    box.sh("! touch /data/new && ! rm /data/file")
    # Root in the guest can ask for more than the mount gives; the host's side says no.
    box.sh("mount -o remount,rw /data; ! touch /data/new")
    assert sorted(os.listdir(project)) == ["file", "out"]


@with_mounts
def test_a_guest_gets_no_further_than_the_directory(make: Make, project: Path) -> None:
    box = make(mounts=(Mount(str(project), "/data", MountMode.RW),), user="root")
    box.sh("! cat /data/out && ! cat /data/../secret")
    box.sh(f"ln -s {project.parent}/secret /data/link && ! cat /data/link")
    # Nor does it hand out the owner of the directory to everyone on the host.
    box.sh("! chmod 4755 /data/file && ! chmod 2755 /data/file && chmod 755 /data/file")
    box.sh("cp /data/file /data/new; ! chmod u+s /data/new; cat /data/new")
    assert not any(path.lstat().st_mode & 0o6000 for path in project.iterdir())


@with_mounts
def test_a_share_killed_ends_its_machine(own: QemuBackend, make: Make, project: Path) -> None:
    box = make(own, mounts=(parse_workspace(str(project)),))
    (inner,) = process.children(box.wall._process._keeper.pid)
    (share,) = [pid for pid in process.children(inner) if _name(pid) == "virtiofsd"]
    os.kill(share, signal.SIGKILL)
    assert box.wall.wait(SECONDS)
    assert _wait(lambda: not process.children(inner))


@with_mounts
def test_a_volume_is_the_users_whichever_wall_wrote_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTD_DAEMON__STATE", str(tmp_path))
    size = ["--size", "32MiB"] if os.geteuid() == 0 else []
    assert main(["volume", "create", "--embedded", "v", *size]) == 0
    with Sandbox.create(volumes=["v:/data"], embedded=True) as box:
        box.run("umask 077; echo linux > /data/linux", check=True)
    store = VolumeStore(str(tmp_path / "volumes"))
    mounts = store.found(f"uid:{os.geteuid()}", (parse_volume("v:/data"),))
    machine = make(mounts=mounts)
    assert machine.sh("cat /data/linux; stat -c %u /data /data/linux") == "linux\n1000\n1000\n"
    machine.sh("umask 077; echo qemu > /data/qemu")
    assert "volume:v" in machine.wall.enforcement["mount /data"].detail
    assert main(["volume", "rm", "--embedded", "v"]) != 0
    with Sandbox.create(volumes=["v:/data"], user="root", embedded=True) as box:
        assert box.run("cat /data/qemu", check=True).text == "qemu\n"
    machine.close()
    assert main(["volume", "rm", "--embedded", "v"]) == 0


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_a_copy_on_write_is_refused(shared: QemuBackend) -> None:
    with pytest.raises(Refused) as caught:
        shared.plan(SandboxSpec(mounts=(parse_workspace("/tmp:cow"),)))
    assert caught.value.remediation


def test_a_template_that_qemu_does_not_take_is_made_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = Templates(str(tmp_path / "templates"))
    backend = QemuBackend(templates)
    built = []

    def spoiled(*args: Any) -> None:
        built.append(args)
        if len(built) == 1:
            os.write(args[-1], b"no state at all")
        else:
            QemuBackend._make(backend, *args)

    monkeypatch.setattr(backend, "_make", spoiled)
    try:
        box = make(backend)
        assert box.sh("echo on") == "on\n"
        box.close()
    finally:
        backend.close()
    assert len(built) == 2


# --- the serial port as the way in ---


def test_one_stream_at_a_time_over_the_serial_port(make: Make) -> None:
    backend = QemuBackend(transport="serial")
    try:
        box = make(backend)
        assert box.sh("echo through") == "through\n"
        stream = box.wall._stream
        assert stream is not None
        with pytest.raises(SandboxError, match="one stream at a time"):
            box.wall.open_stream()
        box.reconnect()
        assert box.sh("echo again") == "again\n"
        box.close()
    finally:
        backend.close()


# --- an image whose agent is not ours ---


def test_an_agent_that_speaks_only_v1_is_booted_and_driven(
    make: Make, shared: QemuBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images.ensure()
    overlay = boot.instead_of_the_agent(Path(boot.__file__).parent / "v1_only.py", "5000")
    initramfs = Path(image.initramfs).read_bytes() + overlay.replace(b"other\0", b"init\0\0")
    (tmp_path / "initramfs").write_bytes(initramfs)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images.build("own", kernel=image.kernel, initramfs=str(tmp_path / "initramfs"))
    box = make(image="own")
    assert box.sh("echo through; pwd") == "through\n/\n"
    said = box.wall.enforcement
    assert said["virtual_machine"].enforced
    assert not said["identity"].enforced
    assert not said["pids"].enforced
    with pytest.raises(Refused, match="not ours"):
        box.wall.snapshot(str(tmp_path))
    with pytest.raises(Refused, match="--pids"):
        shared.launch(shared.plan(SandboxSpec(image="own", limits=Limits(pids=10))))


# --- pause and snapshots ---


def test_a_paused_machine_stands_still(make: Make) -> None:
    box = make()
    box.start("i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.2; done")
    assert _wait(lambda: box.sh("cat /tmp/count 2>/dev/null || true") != "")
    box.wall.pause()
    with pytest.raises(SandboxError, match="paused"):
        box.wall.open_stream()
    used = box.wall.usage().get("cpu_usec", 0)
    time.sleep(0.5)
    assert box.wall.usage().get("cpu_usec", 0) - used < 400_000
    box.wall.resume()
    before = int(box.sh("cat /tmp/count") or 0)  # it may be emptied to be written anew
    assert _wait(lambda: int(box.sh("cat /tmp/count") or 0) > before)


def test_processes_and_files_go_on_from_a_snapshot(
    make: Make, restore: Callable[[Path], Box], tmp_path: Path
) -> None:
    box = make()
    box.start("echo $$ > pid; n=0; while :; do n=$((n+1)); echo $n > beat; sleep 0.5; done")
    assert _wait(lambda: box.sh("cat beat 2>/dev/null || true") != "")
    identity = set(box.sh(_IDENTITY).split()[:3])
    folder = tmp_path / "snapshot"
    folder.mkdir(0o700)
    box.wall.snapshot(str(folder))
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o077 in (0, 0o044)
    # The connections are gone on both sides of it; what listened listens.
    box.reconnect()
    assert box.sh("cat pid").strip().isdigit()
    clones = [restore(folder) for _ in range(2)]
    found = [set(clone.sh(_IDENTITY).split()[:3]) for clone in clones]
    assert not found[0] & found[1]
    assert not (found[0] | found[1]) & identity
    for clone in clones:
        pid = clone.sh("cat pid").strip()
        assert clone.sh(f"kill -0 {pid} && echo alive") == "alive\n"
        before = int(clone.sh("cat beat") or 0)  # it may be emptied to be written anew
        assert _wait(lambda c=clone, before=before: int(c.sh("cat beat") or 0) > before)
    clones[0].sh("echo only here > own")
    assert clones[1].sh("test -e own || echo absent") == "absent\n"
    assert box.sh("test -e own || echo absent") == "absent\n"


def test_a_damaged_snapshot_is_refused(
    make: Make, restore: Callable[[Path], Box], tmp_path: Path
) -> None:
    make().wall.snapshot(str(tmp_path))
    with open(tmp_path / "memory.state", "r+b") as file:
        file.seek(4096)
        byte = file.read(1)
        file.seek(4096)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(SandboxError, match="damaged"):
        restore(tmp_path)
    (tmp_path / "machine.json").write_text("{}")
    with pytest.raises(SandboxError, match="no snapshot"):
        restore(tmp_path)


# --- ends ---


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo c > /proc/sysrq-trigger", "its kernel panicked: sysrq triggered crash"),
        ("reboot -f", "restarted by itself"),
        ("poweroff -f", "shut down"),
    ],
)
def test_a_guest_that_ends_itself(make: Make, script: str, reason: str) -> None:
    box = make(user="root")
    with pytest.raises((AgentdError, AssertionError)):
        box.sh(f"{script}; sleep 60")
    assert box.wall.wait(SECONDS)
    assert not box.wall.alive()
    with pytest.raises(BackendLost) as caught:
        box.wall.open_stream()
    assert reason in str(caught.value)


def test_a_flood_on_the_console_fills_nothing(make: Make) -> None:
    box = make(user="root")
    box.start("yes flood > /dev/ttyS0")
    time.sleep(2)
    seen = box.wall._process._keeper.look(box.wall._process._number)
    assert len(seen.console) <= 64 << 10
    assert box.sh("echo on") == "on\n"


def test_an_agent_that_never_answers_is_given_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make()
    monkeypatch.setattr("agentd.sandbox.backends.qemu.wall.STREAM_SECONDS", 1.0)
    guest = Guest(box.wall.open_stream, passes_descriptors=False, handshake_timeout=0.5)
    box.wall._process.execute("stop")
    try:
        with pytest.raises(SandboxError):
            guest.call("sys.ping")
    finally:
        guest.close()


# --- what a caller sees of it ---


@pytest.fixture
def create(own: QemuBackend) -> Iterator[Callable[..., Sandbox]]:
    """``Sandbox.create`` on this wall."""
    pipeline = Pipeline(Manager(made={"qemu": own}))

    def create(**wanted: Any) -> Sandbox:
        spec = build.sandbox_spec(backend="qemu", **wanted)
        service = EmbeddedService(pipeline)
        return Sandbox(service, service.adopt(pipeline.open(local("test"), spec)))

    yield create
    pipeline.manager.close()


def _ceiling_in_force() -> bool:
    hierarchy = own_hierarchy()
    return not isinstance(hierarchy, str) and "memory" in hierarchy.controllers


with_ceiling = pytest.mark.skipif(not _ceiling_in_force(), reason="no memory controller here")


@with_ceiling
def test_a_snapshot_that_lies_in_memory_does_not_end_its_source(
    create: Callable[..., Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "HOST_OVERHEAD", 180 * MIB)  # no room for its file beside it
    with create(memory="64M") as sandbox, tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        sandbox.run("yes | head -c 30000000 > file", check=True)
        with sandbox.snapshot(f"{folder}/kept"):
            result = sandbox.run(["echo", "on"])  # and the first command after it is not lost
            assert result.text == "on\n", result.cause
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ceiling, "_available", lambda: 100 * MIB)
                with pytest.raises(SandboxError, match="no memory for a snapshot"):
                    sandbox.snapshot(f"{folder}/other")
        assert sandbox.run(["echo", "on"]).text == "on\n"


def _ends_under_a_command(sandbox: Sandbox, pid: int) -> Cause:
    """By the one signal that reaches it from outside: it is PID 1 of its namespace."""
    with sandbox.start(["sh", "-c", "echo on; sleep 600"]) as process:
        assert next(iter(process)).data == b"on\n"
        os.kill(pid, signal.SIGKILL)
        return process.wait().cause


def test_the_end_of_a_machine_is_the_cause_of_its_command(create: Callable[..., Sandbox]) -> None:
    with create(memory="64M") as sandbox:
        cause = _ends_under_a_command(sandbox, sandbox._service.handle(sandbox.id).wall.pid)  # type: ignore[attr-defined]
        assert cause.code is CauseCode.BACKEND_LOST
        assert cause.message.startswith("the virtual machine ended: it was killed")
        with pytest.raises(BackendLost, match="it was killed"):
            sandbox.run(["true"])


def test_who_asks_as_it_is_ended_is_told_how_it_ended(create: Callable[..., Sandbox]) -> None:
    with create(memory="64M") as sandbox:
        wall: Any = sandbox._service.handle(sandbox.id).wall  # type: ignore[attr-defined]
        keeper = wall._process._keeper
        asked, forgotten = threading.Event(), threading.Event()

        def look(number: int) -> MachineStatus:
            if not asked.is_set():
                asked.set()
                forgotten.wait(1)
            return type(keeper).look(keeper, number)  # type: ignore[no-any-return]

        def end(number: int) -> MachineStatus:
            try:
                return type(keeper).end(keeper, number)  # type: ignore[no-any-return]
            finally:
                forgotten.set()

        os.kill(wall.pid, signal.SIGKILL)
        assert wall.wait(SECONDS)
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as pool:
            patch.setattr(keeper, "look", look)
            patch.setattr(keeper, "end", end)
            told = pool.submit(wall.ending)
            assert asked.wait(SECONDS)
            wall.kill()
            assert told.result().message.startswith("the virtual machine ended: it was killed")


def test_its_end_is_told_through_a_supervisor_too(own: QemuBackend) -> None:
    """As a daemon's sandboxes are: whether it has seen the end itself by then or not."""
    with supervised(own) as (pipeline, supervisor, ended):
        spec = build.sandbox_spec(backend="qemu", memory="64M")
        service, handle = EmbeddedService(pipeline), pipeline.open(local("test"), spec)
        with Sandbox(service, service.adopt(handle)) as sandbox:
            (entry,) = supervisor._entries.values()
            cause = _ends_under_a_command(sandbox, entry.wall.pid)  # type: ignore[attr-defined]
            assert cause.message.startswith("the virtual machine ended: it was killed")
            assert ended.wait(SECONDS)
            assert handle.wall.ending() == cause  # type: ignore[attr-defined]


# --- what is left ---


def _processes(keeper: int) -> list[int]:
    """The keeper's guard and everything below."""
    return [keeper, *process.descendants(keeper)]


def _gone(pids: list[int]) -> bool:
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            return False
    return True


def test_a_machine_that_is_closed_leaves_no_process_and_no_file(make: Make) -> None:
    box = make()
    keeper = box.wall._process._keeper
    before = [pid for pid in _processes(keeper.pid) if _is_of(pid, box.wall)]
    assert len(before) == 2  # the monitor and the device
    box.close()
    assert _wait(lambda: _gone(before))
    assert not [name for name in os.listdir(keeper.folder) if name != "lock"]


def _is_of(pid: int, wall: QemuWall) -> bool:
    """Whether a process is the machine's: the same user, or below the same keeper."""
    inner = process.children(wall._process._keeper.pid)
    return pid in process.children(inner[0])


def test_its_sockets_have_no_names(make: Make) -> None:
    """A sandbox of an ordinary user, who is this user too, would find them where the folder is
    mounted in it: the machine's agent behind one, and the rules of its network behind another."""
    box = make()
    assert box.sh("echo it answers") == "it answers\n"
    assert not [at for at in Path(box.wall._process._keeper.folder).iterdir() if at.is_socket()]


@pytest.mark.parametrize("victim", ["monitor", "device"])
def test_killed_one_by_one(own: QemuBackend, make: Make, victim: str) -> None:
    box = make(own)
    keeper = box.wall._process._keeper
    (inner,) = process.children(keeper.pid)
    children = process.children(inner)
    assert box.wall.pid in children
    pid = box.wall.pid if victim == "monitor" else next(p for p in children if p != box.wall.pid)
    os.kill(pid, signal.SIGKILL)
    assert box.wall.wait(SECONDS)
    assert _wait(lambda: _gone(children))
    with pytest.raises(BackendLost):
        box.wall.open_stream()
    box.close()
    assert os.listdir(keeper.folder) == ["lock"]
    assert make(own).sh("echo next") == "next\n"  # the keeper goes on


@pytest.mark.parametrize("which", ["guard", "keeper"])
def test_the_keeper_killed(own: QemuBackend, make: Make, which: str) -> None:
    box = make(own)
    keeper = box.wall._process._keeper
    everyone = _processes(keeper.pid)
    os.kill(everyone[0] if which == "guard" else everyone[1], signal.SIGKILL)
    assert box.wall.wait(SECONDS)
    assert _wait(lambda: _gone(everyone))
    with pytest.raises(BackendLost):
        box.wall.open_stream()
    box.close()
    assert make(own).sh("echo next") == "next\n"  # with a new one
    assert not os.path.exists(keeper.folder)


@pytest.fixture
def host() -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that has a machine; its first line is its keeper's pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOST],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            yield process
        finally:
            process.kill()
    # As the next agentd on this machine does.
    subprocess.run([sys.executable, "-c", REAP], env={"PYTHONPATH": SOURCE}, check=True)


def _dead_folders() -> set[str]:
    base = folders.base()
    return {name for name in os.listdir(base) if folders._is_dead(f"{base}/{name}")}


def _folder_of(guard: int) -> str:
    """The run folder whose lock it holds; the others in there are of whoever else has machines."""
    held = (os.readlink(entry) for entry in Path(f"/proc/{guard}/fd").iterdir())
    (lock,) = (path for path in held if path.startswith(folders.base()) and path.endswith("/lock"))
    return os.path.dirname(lock)


def test_the_host_killed(host: "subprocess.Popen[bytes]") -> None:
    assert host.stdout is not None
    everyone, before = _processes(int(host.stdout.readline())), _dead_folders()
    assert len(everyone) == 4  # guard, keeper, monitor, device
    host.kill()
    assert _wait(lambda: _gone(everyone))
    assert _wait(lambda: _dead_folders() <= before)


@pytest.mark.parametrize("seconds", [0.2, 0.4, 0.6, 0.8])
def test_the_host_killed_while_it_builds(host: "subprocess.Popen[bytes]", seconds: float) -> None:
    time.sleep(seconds)  # wherever it is by then
    everyone, before = process.descendants(host.pid), _dead_folders()
    host.kill()
    host.wait()
    assert _wait(lambda: _gone(everyone))
    assert _wait(lambda: _dead_folders() <= before)


def test_all_killed_at_once_is_cleaned_up_by_the_next(host: "subprocess.Popen[bytes]") -> None:
    assert host.stdout is not None
    guard = int(host.stdout.readline())
    everyone = _processes(guard)
    folder = _folder_of(guard)
    assert os.path.exists(folder)
    host.send_signal(signal.SIGSTOP)
    os.kill(guard, signal.SIGKILL)  # nobody is left to remove the folder
    host.kill()
    assert _wait(lambda: _gone(everyone))
    path, lock = folders.claim()
    assert not os.path.exists(folder)
    os.close(lock)
    folders.remove(path)


# --- as an ordinary user ---


@with_mounts
def test_an_ordinary_user_has_it_all(as_user: Any) -> None:
    as_user.take_image()
    done = as_user.python("-c", patient(USER), timeout=280 * SLOWER)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert lines == ["uid=1000(sandbox)", "mounted", "True", "[]"]
