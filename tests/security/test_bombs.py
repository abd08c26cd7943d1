"""Threat: code that takes all processes, memory, disk, inodes, descriptors or output there is.

Controls: the cgroup's memory and pids limits, the size and inodes of the one scratch tmpfs,
RLIMIT_NOFILE, the output limit. Each limit met has its cause, and the sandbox's other work goes on.
"""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from agentd.daemon.commands.ends import refine
from agentd.linux.cgroup import Hierarchy
from agentd.model.result import CauseCode, Exit
from agentd.model.spec import ExecRequest
from agentd.sandbox.backends.cgroups import own_hierarchy

SMALL = {"memory": "64M", "pids": 32}
# More in the buffers of its own loopback than the sandbox may have: 400 MB by UDP, 280 MB by TCP.
SOCKETS = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
def udp(count):
    for _ in range(count):
        to = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        to.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        to.bind(("127.0.0.1", 0))
        to.setblocking(False)
        by = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        by.connect(to.getsockname())
        for _ in range(8):
            tried(by.send, bytes(50000))
        by.close()
        yield to
def tcp(count):
    server = socket.create_server(("127.0.0.1", 0), backlog=count)
    for _ in range(count):
        by = socket.create_connection(server.getsockname())
        to, _ = server.accept()
        to.setblocking(False)
        by.setblocking(False)
        held.append(by)
        while isinstance(tried(by.send, bytes(1 << 16)), int):
            pass
        yield to
held = []
socks = list((udp if sys.argv[1] == "udp" else tcp)(int(sys.argv[2])))
total = 0
for sock in socks:
    while isinstance(got := tried(sock.recv, 1 << 20), bytes) and got:
        total += len(got)
said("held", total)
"""
# Bounded by itself too: without the limit it must not take the machine.
FORK = """
import time
made = 0
try:
    for _ in range(100):
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        made += 1
except OSError as error:
    said("refused", errno.errorcode[error.errno])
    said("made", made)
    sys.exit(3)
said("made", made)
"""
# Each one forks on, until none can: the shell's :(){ :|:& };:
CHAIN = """
import time
end = time.monotonic() + 4
while time.monotonic() < end:
    try:
        os.fork()
    except OSError:
        time.sleep(0.02)
"""
MEMORY = """
keep = []
for _ in range(150):
    keep.append(bytearray(b"x") * (1 << 20))
said("took", len(keep))
"""
MAPPED = """
import mmap
keep = mmap.mmap(-1, 150 << 20)
for place in range(0, len(keep), 4096):
    keep[place] = 1
said("took", 150)
"""
# Memory that belongs to no process: it stays when its writer is killed.
SHARED = """
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
for _ in range(150):
    os.write(fd, b"x" * (1 << 20))
said("took", 150)
"""
DISK = """
wrote = 0
try:
    with open(sys.argv[1], "wb", buffering=0) as file:
        for _ in range(40):
            wrote += file.write(b"x" * (1 << 20))
except OSError as error:
    said("refused", errno.errorcode[error.errno])
said("wrote", wrote)
"""
INODES = """
made = 0
try:
    for made in range(20000):
        os.mkdir(f"{sys.argv[1]}/{made}")
except OSError as error:
    said("refused", errno.errorcode[error.errno])
said("made", made)
"""
DESCRIPTORS = """
kept = []
try:
    for _ in range(5000):
        kept.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    said("refused", errno.errorcode[error.errno])
said("kept", len(kept))
"""
FLOOD = "while True: os.write(1, b'x' * 65536); os.write(2, b'y' * 65536)"


@pytest.fixture
def groups() -> None:
    hierarchy = own_hierarchy()
    if not isinstance(hierarchy, Hierarchy):
        pytest.skip(f"no cgroups here: {hierarchy}")
    missing = {"memory", "pids"} - set(hierarchy.controllers)
    if missing:
        pytest.skip(f"no {' and no '.join(sorted(missing))} controller is mounted")


def _ended(box: Any, attack: str, *args: str, **request: Any) -> tuple[Exit, dict[str, str]]:
    """How it ended, refined by the wall's counters as for every caller, and what it said."""
    before = dict(box.wall.counters())
    ran = box.run(attack, *args, **request)
    end = refine(ran.exit, before, box.wall.counters())
    return end, dict(line.split("=", 1) for line in ran.stdout.splitlines() if "=" in line)


def _goes_on(box: Any) -> None:
    """Not only the next command: one that was running all the time too."""
    assert box.run(["sh", "-c", "echo on; true | cat"]).stdout == "on\n"
    assert box.guest.call("sys.ping") is not None


def _witness(box: Any) -> Any:
    request = ExecRequest(("sh", "-c", "read line; echo $line"), stdin=True, timeout=300.0)
    return box.guest.start(request, capture=True)


def _lived(witness: Any) -> bool:
    with witness:
        witness.write(b"witness\n")
        witness.close_stdin()
        end = witness.wait()
        return bool(end.ok) and bytes(witness.stdout) == b"witness\n"


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize("user", ["sandbox", "root"])
def test_a_fork_bomb(sandbox: Callable[..., Any], walled: str, user: str) -> None:
    if walled == "landlock" and user == "root":
        pytest.skip("landlock: another user takes a user namespace")
    box = sandbox(walled, **SMALL, **({"user": user} if walled != "landlock" else {}))
    witness = _witness(box)
    end, said = _ended(box, FORK)
    assert said["refused"] == "EAGAIN"
    assert int(said["made"]) < 32
    assert end.cause.code is CauseCode.PIDS_LIMIT
    assert end.cause.remediation
    assert _lived(witness)
    if walled != "landlock":
        box.guest.call("signal", signal=9, target="sandbox")
        _goes_on(box)


@pytest.mark.usefixtures("groups")
def test_a_fork_bomb_that_goes_on_forking(sandbox: Callable[..., Any], walled: str) -> None:
    box = sandbox(walled, **SMALL)
    other = sandbox(walled, **SMALL)
    with box.guest.start(ExecRequest(_argv(box, CHAIN), timeout=6.0)) as running:
        running.step(1.0)
        _goes_on(other)
        running.wait()
    box.wall.kill()
    assert not box.wall.alive()


def _argv(box: Any, script: str) -> tuple[str, ...]:
    return ("/usr/bin/python3", "-I", "-c", sys.modules[type(box).__module__].PRELUDE + script)


@pytest.mark.usefixtures("groups")
def test_with_room_the_same_bomb_is_not_refused(sandbox: Callable[..., Any], enclosed: str) -> None:
    end, said = _ended(sandbox(enclosed, pids=300), FORK)
    assert said == {"made": "100"}
    assert end.ok


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize("attack", [MEMORY, MAPPED], ids=["heap", "mapping"])
def test_a_memory_bomb(sandbox: Callable[..., Any], enclosed: str, attack: str) -> None:
    box = sandbox(enclosed, **SMALL)
    witness = _witness(box)
    end, said = _ended(box, attack)
    assert said == {}
    assert end.cause.code is CauseCode.OOM
    assert end.cause.remediation
    assert _lived(witness)
    _goes_on(box)


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize("place", ["/dev/shm/big", "/tmp/big", "big"])
def test_a_memory_bomb_of_files(sandbox: Callable[..., Any], place: str) -> None:
    """tmpfs pages are charged to the sandbox, and stay when their writer is killed."""
    box = sandbox("linux", **SMALL, disk="256M")
    end, said = _ended(box, SHARED, place)
    assert said == {}
    assert end.cause.code is CauseCode.OOM
    box.wall.kill()
    assert not box.wall.alive()


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize("attack", [MEMORY, MAPPED], ids=["heap", "mapping"])
def test_with_room_the_same_memory_is_had(
    sandbox: Callable[..., Any], enclosed: str, attack: str
) -> None:
    end, said = _ended(sandbox(enclosed, memory="256M"), attack)
    assert said == {"took": "150"}
    assert end.ok


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize(("kind", "count"), [("udp", 1000), ("tcp", 70)])
def test_what_sockets_hold_is_bounded_by_the_memory(
    sandbox: Callable[..., Any], kind: str, count: int
) -> None:
    box = sandbox("linux", **SMALL)
    held = int(box.attack(SOCKETS, kind, str(count))["held"])
    assert held <= 32 << 20
    assert "file locks" in box.wall.enforcement["memory"].detail
    _goes_on(box)


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize(("kind", "count"), [("udp", 1000), ("tcp", 70)])
def test_with_room_sockets_hold_more(sandbox: Callable[..., Any], kind: str, count: int) -> None:
    held = int(sandbox("linux", memory="2G").attack(SOCKETS, kind, str(count))["held"])
    assert held > 128 << 20


@pytest.mark.parametrize("place", ["/workspace/f", "/tmp/f", "/home/sandbox/f", "/dev/shm/f"])
def test_a_disk_bomb(sandbox: Callable[..., Any], place: str) -> None:
    box = sandbox("linux", disk="16M")
    _, said = _ended(box, DISK, place)
    assert said["refused"] == "ENOSPC"
    assert int(said["wrote"]) <= 16 << 20
    # One limit for them all: no place is left to go on in.
    for other in ("/workspace/g", "/tmp/g", "/home/sandbox/g", "/dev/shm/g"):
        assert int(_ended(box, DISK, other)[1]["wrote"]) < 1 << 20
    _goes_on(box)
    assert box.run(["rm", place]).exit.ok
    assert box.run(["sh", "-c", "echo small > /tmp/small"]).exit.ok


def test_a_disk_bomb_has_its_cause(sandbox: Callable[..., Any]) -> None:
    end, _ = _ended(sandbox("linux", disk="16M"), "open('f', 'wb').write(b'x' * (17 << 20))")
    assert end.cause.code is CauseCode.DISK_FULL
    assert end.cause.remediation


def test_with_room_the_disk_is_had(sandbox: Callable[..., Any]) -> None:
    _, said = _ended(sandbox("linux", disk="64M"), DISK, "f")
    assert said == {"wrote": str(40 << 20)}


@pytest.mark.parametrize("place", ["/workspace", "/tmp", "/dev/shm"])
def test_an_inode_bomb(sandbox: Callable[..., Any], place: str) -> None:
    box = sandbox("linux", disk="16M")
    _, said = _ended(box, INODES, place)
    assert said["refused"] == "ENOSPC"
    assert int(said["made"]) <= (16 << 20) // 4096
    _goes_on(box)


def test_with_room_the_inodes_are_had(sandbox: Callable[..., Any]) -> None:
    _, said = _ended(sandbox("linux", disk="128M"), INODES, "/workspace")
    assert said == {"made": "19999"}


@pytest.mark.parametrize(("limit", "refused"), [(256, True), (5100, False)])
def test_a_descriptor_bomb(
    sandbox: Callable[..., Any], enclosed: str, limit: int, refused: bool
) -> None:
    box = sandbox(enclosed, open_files=limit)
    _, said = _ended(box, DESCRIPTORS)
    assert (said.get("refused") == "EMFILE") is refused
    assert int(said["kept"]) < limit
    _goes_on(box)
    raised = box.attack(
        "import resource\n"
        "try:\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))\n"
        "    said('raise', 'done')\n"
        "except (ValueError, OSError): said('raise', 'refused')"
    )
    assert raised["raise"] == "refused"


def test_an_output_flood(sandbox: Callable[..., Any], enclosed: str) -> None:
    box = sandbox(enclosed)
    witness = _witness(box)
    ran = box.run(FLOOD, output_limit=100_000)
    assert ran.exit.cause.code is CauseCode.OUTPUT_LIMIT
    assert len(ran.stdout) <= 100_000
    assert len(ran.stderr) <= 100_000
    assert _lived(witness)
    _goes_on(box)


def test_a_flood_that_nobody_reads_waits(sandbox: Callable[..., Any], enclosed: str) -> None:
    """Back-pressure: neither the host's memory nor the agent's grows with what is written."""
    box = sandbox(enclosed)
    flood = "for _ in range(1 << 12): os.write(1, b'x' * 65536)\nprint('all')"
    with box.guest.start(ExecRequest(_argv(box, flood), timeout=300.0)) as running:
        while running.pid is None:
            running.step(1)
        _goes_on(box)
        assert running.exit is None
        running.kill()
        assert running.wait().cause.code is CauseCode.CANCELLED
