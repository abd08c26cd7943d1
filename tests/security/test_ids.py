"""A sandbox's user is nobody else's: not another sandbox's, of this process or of another's."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import ids
from tests.security.daemons import Daemon, until

from agentd.client import build
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.identity import SIZE, START
from agentd.sandbox.backends.linux.backend import LinuxBackend
from agentd.sandbox.ports import Wall

pytestmark = pytest.mark.root

_ENV = {"AGENTD_IDS__START": str(ids.own(1, 8).start), "AGENTD_IDS__BLOCKS": "8"}
_OWNER = """
import sys
from agentd import Sandbox
from agentd.model.errors import AgentdError
boxes = []
for _ in range(int(sys.argv[1])):
    try:
        boxes.append(Sandbox.create(backend="linux"))
    except AgentdError as error:
        print(f"error={error} {error.remediation}", flush=True)
        break
    print(boxes[-1].run("true").exit_code, flush=True)
print("made", flush=True)
sys.stdin.read()
"""


def outside(wall: Wall) -> set[int]:
    """Every user and group id of its first process."""
    lines = Path(f"/proc/{wall.save()['pid']}/status").read_text().splitlines()
    ids = [line.split()[1:] for line in lines if line.startswith(("Uid:", "Gid:"))]
    return {int(each) for line in ids for each in line}


@pytest.fixture
def backend() -> Iterator[LinuxBackend]:
    made = LinuxBackend()
    yield made
    made.close()


def test_a_thousand_sandboxes_have_a_thousand_ids(backend: LinuxBackend, tmp_path: Path) -> None:
    """Fresh, made ahead, and with a workspace alike."""
    plain = backend.plan(build.sandbox_spec())
    mounted = backend.plan(build.sandbox_spec(workspace=str(tmp_path)))
    (tmp_path / "file").write_text("text")
    seen: list[int] = []
    for _ in range(50):
        walls: list[Wall] = []
        try:
            for number in range(20):
                walls.append(backend.launch(mounted if number % 3 == 2 else plain))
                ids = outside(walls[-1])
                assert len(ids) == 1, "all of its ids are one"
                seen += ids
        finally:
            for wall in walls:
                wall.kill()
    assert len(set(seen)) == 1000
    assert START not in seen
    assert all((each - START) % SIZE == 0 for each in seen)


def test_a_block_comes_back_when_its_sandbox_has_ended(backend: LinuxBackend) -> None:
    wall = backend.launch(backend.plan(build.sandbox_spec()))
    (mine,) = outside(wall)
    assert os.path.exists(f"{identity.FOLDER}/{mine}")
    wall.kill()
    assert not os.path.exists(f"{identity.FOLDER}/{mine}")


def test_a_block_whose_file_was_removed_is_given_to_nobody_else(
    backend: LinuxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one clears /run by hand: it is taken for a place of leftovers."""
    monkeypatch.setattr(identity, "_range", ids.own(2, 8))
    plan = backend.plan(build.sandbox_spec())
    wall = backend.launch(plan)
    (mine,) = outside(wall)
    os.unlink(f"{identity.FOLDER}/{mine}")
    monkeypatch.setattr(identity, "_cursor", (mine - identity.configured().start) // SIZE)
    block = identity.take()
    assert block is not None and block.id != mine
    # What another made of that name meanwhile is another's.
    place = Path(f"{identity.FOLDER}/{mine}")
    place.touch()
    try:
        wall.kill()
        assert place.exists()
    finally:
        place.unlink()
        block.release()


def test_each_wall_of_the_process_level_has_its_own(sandbox: Callable[..., Any]) -> None:
    first, second = (outside(sandbox("landlock").wall) for _ in range(2))
    assert len(first) == len(second) == 1
    assert first.isdisjoint(second)


def test_a_workspace_belongs_to_its_sandbox_and_stays_the_owners(
    sandbox: Callable[..., Any], tmp_path: Path
) -> None:
    os.chown(tmp_path, 4321, 4322)
    (tmp_path / "file").write_text("text")
    os.chown(tmp_path / "file", 4321, 4322)
    (tmp_path / "file").chmod(0o600)
    attack = "open('/workspace/made', 'x').close(); said('had', open('/workspace/file').read())"
    for name in ("first", "second"):
        box = sandbox("linux", workspace=str(tmp_path))
        assert box.attack(attack)["had"] == "text"
        made = (tmp_path / "made").stat()
        assert (made.st_uid, made.st_gid) == (4321, 4322)
        (tmp_path / "made").rename(tmp_path / name)


_DAEMON = """
[ids]
start = {start}
blocks = 16
[[pool]]
min = 2
max = 2
"""


def blocks_alive(start: int) -> dict[int, set[str]]:
    """By block of the range from ``start``: the pid namespaces of all processes with its ids."""
    found: dict[int, set[str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines = (folder / "status").read_text().splitlines()
            ids = {int(w) for line in lines if line.startswith("Uid:") for w in line.split()[1:]}
            for each in {(uid - start) // SIZE for uid in ids if start <= uid < start + 16 * SIZE}:
                found.setdefault(each, set()).add(os.readlink(folder / "ns/pid"))
    return found


def test_a_daemons_sandboxes_of_the_pool_and_others_have_their_own(tmp_path: Path) -> None:
    """In the range that its configuration says; and a daemon that takes over goes on so."""
    start = ids.own(3, 16).start
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    config = _DAEMON.format(start=start)
    with tempfile.TemporaryDirectory(prefix="agentd-ids-") as folder:
        daemon = Daemon(Path(folder), config)
        try:
            daemon.start()
            boxes = [daemon.sandbox() for _ in range(3)]
            daemon.stop(kill=True)
            daemon.start()
            boxes += [daemon.sandbox(), daemon.sandbox(mounts=[f"{workspace}:/workspace:rw"])]
            # A clone that is just being made is in two blocks.
            until(lambda: max(map(len, blocks_alive(start).values())) <= 2)
            alive = blocks_alive(start)
            # Each is one pid namespace's; the zygote's has its first process's besides.
            assert len(alive) >= len(boxes) + 1
            assert sum(len(spaces) == 1 for spaces in alive.values()) >= len(boxes)
            assert len(set().union(*alive.values())) >= len(alive)
        finally:
            daemon.end()


# Each holds all that it can get, in a process that goes on when the command has ended.
_HOLD = """
if os.fork() == 0:
    for fd in range(3):
        os.close(fd)
    signal.pause()
"""
IN_FLIGHT = """
null, pairs, count = os.open("/dev/null", os.O_RDONLY), [], 0
def send():
    pairs[-1][0].setblocking(False)
    return socket.send_fds(pairs[-1][0], [b"x"], [null] * 100)
pairs.append(socket.socketpair())
while (got := tried(send)) in (1, "EAGAIN"):
    count += 100 * (got == 1)
    if got != 1:
        pairs.append(socket.socketpair())
said("held", count)
said("stopped", got)
"""
SENDS = """
left, right = socket.socketpair()
said("sent", tried(socket.send_fds, left, [b"x"], [0]))
"""
WATCHES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held = []
while isinstance(got := call("inotify_init1", 0), int):
    held.append(got)
said("held", len(held))
said("stopped", got)
"""
LEASE = """
import fcntl
for path in ("/etc/passwd", "/etc/ld.so.cache"):
    fd = os.open(path, os.O_RDONLY)
    said(path, tried(fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_RDLCK))
"""


@pytest.mark.parametrize("off", [(), ("ids",)], ids=["on", "off"])
def test_descriptors_in_flight_of_one_are_not_anothers(
    sandbox: Callable[..., Any], off: tuple[str, ...]
) -> None:
    attacker, victim = (sandbox("linux", without=off) for _ in range(2))
    held = attacker.attack(IN_FLIGHT + _HOLD)
    assert (int(held["held"]) > 0, held["stopped"]) == (True, "ETOOMANYREFS")
    assert victim.attack(SENDS)["sent"] == ("ETOOMANYREFS" if off else "1")


@pytest.mark.parametrize(
    ("wall", "off"),
    [("linux", ()), ("linux", ("user_counts",)), ("oci", ())],
    ids=["on", "off", "oci"],
)
def test_inotify_of_one_leaves_some_to_others(
    sandbox: Callable[..., Any], wall: str, off: tuple[str, ...]
) -> None:
    """Counted in the user namespaces above, too: there all sandboxes of a zygote are one user."""
    most = int(Path("/proc/sys/user/max_inotify_instances").read_text())
    if most > 1000:
        pytest.skip("this machine's limit is above what one process may open")
    attacker, victim = (sandbox(wall, without=off) for _ in range(2))
    held = attacker.attack(WATCHES + _HOLD)
    assert held == {"held": str(most if off else most // 4), "stopped": "EMFILE"}
    shared = attacker.wall.enforcement["shared"]
    assert shared.enforced is not bool(off)
    assert (f"{most // 4} inotify instances" in shared.detail) is not bool(off)
    assert int(victim.attack(WATCHES)["held"]) == (0 if off else most // 4)


@pytest.mark.parametrize("off", [(), ("ids",)], ids=["on", "off"])
def test_no_sandbox_owns_a_file_of_the_root_that_all_share(
    sandbox: Callable[..., Any], off: tuple[str, ...]
) -> None:
    """Owners may lease a file, and hold up all who open it; the filter refuses that as well."""
    said = sandbox("linux", without={"seccomp", *off}).attack(LEASE)
    assert set(said.values()) == {"0" if off else "EACCES"}


def owner(count: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(count)],
        env={**os.environ, **_ENV},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: "subprocess.Popen[str]") -> list[str]:
    assert process.stdout is not None
    lines = []
    while (line := process.stdout.readline().strip()) not in ("made", ""):
        lines.append(line)
    return lines


def test_two_processes_never_share_a_block_and_kill_9_gives_them_back() -> None:
    """Of 8 blocks the first has 4 or 5: a zygote, three sandboxes, perhaps one ahead."""
    with owner(3) as first:
        assert said(first) == ["0", "0", "0"]
        with owner(9) as second:
            *fine, error = said(second)
            assert 1 <= len(fine) <= 3
            assert "no block of user ids is free: all 8" in error
            assert "ids.blocks" in error
            second.kill()
        first.send_signal(signal.SIGKILL)
        first.wait()
    # What they left dies by itself; then all is there again for somebody else.
    assert any(whole(6) for _ in range(20))


def whole(count: int) -> bool:
    """Whether a process of its own can have so many sandboxes at once."""
    with owner(count) as process:
        told = said(process)
        process.communicate("")
    return told == ["0"] * count


FULL = """
mount --make-rprivate / && mount -t tmpfs -o size=4k,mode=755 run /run && echo > /run/fill
exec "$@"
"""


def test_where_nothing_can_be_noted_it_says_so() -> None:
    """In a mount namespace in which /run is full."""
    argv = ["unshare", "--mount", "sh", "-c", FULL, "sh", sys.executable, "-m", "agentd", "run"]
    argv += ["--embedded", "--backend", "landlock", "--", "true"]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 125
    assert "it cannot be noted whose" in ran.stderr
    assert "make room where /run/agentd-ids lies" in ran.stderr


def test_ids_that_are_said_wrong_are_told_and_no_other_wall_is_tried() -> None:
    wrong = {"AGENTD_IDS__START": "7"}
    words = [sys.executable, "-m", "agentd", "run", "--embedded", "--", "true"]
    told = subprocess.run(
        words, check=False, env={**os.environ, **wrong}, capture_output=True, timeout=120
    )
    assert told.returncode == 2
    (line,) = told.stderr.decode().splitlines()
    assert line.startswith("agentd run: ids.start: 7 lies among the machine's own users")


def test_a_wall_that_could_not_be_built_once_is_tried_anew(monkeypatch: Any) -> None:
    from agentd.model.errors import SandboxError
    from agentd.sandbox.backends.linux import nursery

    def none_free(*_: object) -> None:
        raise SandboxError("no block of user ids is free", remediation="end sandboxes")

    made = LinuxBackend()
    try:
        with monkeypatch.context() as full:
            full.setattr(nursery.identity, "take", none_free)
            (blocker,) = made.probe().blockers
            assert (blocker.what, blocker.fix) == ("no block of user ids is free", "end sandboxes")
        assert made.probe().usable
    finally:
        made.close()
