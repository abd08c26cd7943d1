"""Threat: behind the process wall a command is the caller's own user, on the caller's own machine.

Controls: Landlock for files, TCP, abstract sockets and signals; seccomp for what Landlock does not
govern: unix sockets by path, modes, owners, times and attributes of files, other processes'
priorities and limits, System V and POSIX IPC. Run by root, commands have a user that owns nothing;
what anybody may write they see read-only.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

START = """
import json, sys
from agentd.client import build
from agentd.model.spec import ExecRequest
from agentd.sandbox.backends.process import LandlockBackend
from agentd.transport.guest import Guest
without, attack, *arguments = json.loads(sys.argv[1])
backend = LandlockBackend(without=frozenset(without))
found = backend.probe()
if not found.usable:
    print(json.dumps([blocker.what for blocker in found.blockers]))
    sys.exit()
wall = backend.launch(backend.plan(build.sandbox_spec(backend="landlock")))
guest = Guest(wall.open_stream, passes_descriptors=True)
argv = ("/usr/bin/python3", "-I", "-c", attack, wall.workspace, *arguments)
end, out, err, _ = guest.run(ExecRequest(argv, cwd=wall.workspace, timeout=120.0))
guest.close()
wall.kill()
if not end.ok:
    sys.exit(f"{end} {err.decode()}")
sys.stdout.buffer.write(out)
"""
# Nothing that harms where it succeeds: signal 0, the limits and modes that are there already.
ATTACK = """
import ctypes, errno, json, os, socket, stat, sys
workspace, home, pid, abstract, key = sys.argv[1:]
pid = int(pid)
libc = ctypes.CDLL(None, use_errno=True)
def c(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
def connect(address):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address)
def write(path, flags):
    os.close(os.open(path, flags | os.O_CLOEXEC))
file = home + "/.bashrc"
ways = {
    "read key": lambda: write(home + "/.ssh/key", os.O_RDONLY),
    "list home": lambda: os.listdir(home),
    "append": lambda: write(file, os.O_WRONLY | os.O_APPEND),
    "create": lambda: write(home + "/new", os.O_WRONLY | os.O_CREAT),
    "truncate": lambda: os.truncate(home + "/empty", 0),
    "link out": lambda: os.link(file, workspace + "/link"),
    "rename": lambda: os.rename(home + "/empty", workspace + "/empty"),
    "chmod": lambda: os.chmod(file, 0o644),
    "chown": lambda: os.chown(file, os.getuid(), os.getgid()),
    "utime": lambda: os.utime(file, (1, 1)),
    "setxattr": lambda: os.setxattr(file, "user.agentd", b"x"),
    "signal": lambda: os.kill(pid, 0),
    "pidfd signal": lambda: __import__("signal").pidfd_send_signal(os.pidfd_open(pid), 0),
    "ptrace": lambda: c("ptrace", 0x4206, pid, 0, 0),
    "memory": lambda: write(f"/proc/{pid}/mem", os.O_RDWR),
    "environment": lambda: write(f"/proc/{pid}/environ", os.O_RDONLY),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, pid, 19),
    "user's priority": lambda: c("setpriority", 2, 0, 19),
    "affinity": lambda: os.sched_setaffinity(pid, os.sched_getaffinity(0)),
    "limits": lambda: __import__("resource").prlimit(pid, 7, (64, 64)),
    "scheduler": lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)),
    "unix socket": lambda: connect(home + "/socket"),
    "abstract socket": lambda: connect("\\0" + abstract),
    "shared memory": lambda: c("shmget", int(key), 1, 0o600),
    "message queue": lambda: c("mq_open", b"/agentd", os.O_RDWR | os.O_CREAT, 0o600, 0),
    "terminals": lambda: os.listdir("/dev/pts"),
    "runtime": lambda: os.listdir(f"/run"),
    "setuid": lambda: os.setuid(0),
}
said = {}
for name, way in ways.items():
    try:
        way()
        said[name] = "done"
    except OSError as error:
        said[name] = errno.errorcode.get(error.errno, str(error.errno))
libc.mq_unlink(b"/agentd")
print(json.dumps(said))
"""
IPC_RMID, IPC_CREAT = 0, 0o1000


@pytest.fixture
def victim(as_user: Any) -> Iterator[list[str]]:
    """The caller's home, a process, an abstract socket and a shared memory segment of theirs."""
    import ctypes

    home, uid = as_user.home, as_user.home.stat().st_uid
    (home / ".ssh").mkdir()
    for name in (".bashrc", "empty", ".ssh/key"):
        (home / name).write_text("")
    with socket.socket(socket.AF_UNIX) as path, socket.socket(socket.AF_UNIX) as abstract:
        path.bind(str(home / "socket"))
        abstract.bind(f"\0agentd-test-{os.urandom(6).hex()}")
        for sock in (path, abstract):
            sock.listen(8)
        for entry in (home, *home.rglob("*")):
            os.chown(entry, uid, uid)
        key = int.from_bytes(os.urandom(3)) + 1
        libc = ctypes.CDLL(None, use_errno=True)
        segment = libc.shmget(key, 1, IPC_CREAT | 0o666)
        become = {"user": uid, "group": uid, "extra_groups": []} if os.getuid() == 0 else {}
        process = subprocess.Popen(["sleep", "60"], **become)
        try:
            name = abstract.getsockname()[1:].decode()
            yield [str(home), str(process.pid), name, str(key)]
        finally:
            process.kill()
            process.wait()
            libc.shmctl(segment, IPC_RMID, None)


def _attack(user: Any, without: set[str], victim: list[str]) -> dict[str, str]:
    ran = user.python("-c", START, json.dumps([sorted(without), ATTACK, *victim]))
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    if isinstance(said, list):
        pytest.skip(f"landlock: {'; '.join(said)}")
    answers: dict[str, str] = said
    return answers


def test_nothing_of_the_callers_is_reached(as_user: Any, victim: list[str]) -> None:
    said = _attack(as_user, set(), victim)
    assert "done" not in said.values(), said
    refused = {"EACCES", "EPERM", "ENOSYS", "ENOTSUP", "EXDEV", "ESRCH"}
    assert set(said.values()) <= refused, said
    assert not Path(victim[0], "new").exists()


BY_LANDLOCK = {"read key", "list home", "append", "create", "truncate", "signal", "pidfd signal"}
BY_SECCOMP = {"chmod", "chown", "utime", "priority", "user's priority", "affinity", "unix socket"}
BY_SECCOMP |= {"limits", "scheduler", "shared memory"}


def test_without_landlock_the_files_are_reached(as_user: Any, victim: list[str]) -> None:
    said = _attack(as_user, {"landlock"}, victim)
    done = {name for name, answer in said.items() if answer == "done"}
    assert done >= BY_LANDLOCK, said
    assert not done & BY_SECCOMP, said


def test_without_seccomp_what_landlock_leaves_is_reached(as_user: Any, victim: list[str]) -> None:
    said = _attack(as_user, {"seccomp"}, victim)
    done = {name for name, answer in said.items() if answer == "done"}
    assert done >= BY_SECCOMP - {"unix socket"}, said
    assert not done & BY_LANDLOCK, said


def test_without_both_everything_is(as_user: Any, victim: list[str]) -> None:
    said = _attack(as_user, {"seccomp", "landlock", "dumpable"}, victim)
    left = {name for name, answer in said.items() if answer != "done"}
    # A setuid to root never was theirs; an attribute or a foreign scheduler may not be either.
    assert left <= {"setuid", "setxattr", "ptrace"}, said
    assert said["unix socket"] == said["abstract socket"] == "done"


METADATA = """
import fcntl
file = sys.argv[1]
said("times", tried(os.utime, file))
said("attribute", tried(os.setxattr, file, "user.agentd", b"x"))
said("mode", tried(os.chmod, file, 0o600))
said("size", tried(os.truncate, file, 0))
"""
# What programs do to files of their own.
WORKSPACE = """
path = sys.argv[1] + "/new"
said("new", opens(path, os.O_CREAT | os.O_WRONLY))
said("times", tried(os.utime, path, (1, 1)))
said("removed", tried(os.unlink, path))
"""
OWN = """
with open("own", "w") as file:
    file.write("x")
os.chmod("own", 0o750)
os.utime("own", (1, 1))
os.utime("own")
os.mkdir("folder")
os.rename("own", "folder/own")
said("own", oct(os.stat("folder/own").st_mode & 0o777))
said("temporary", tried(os.mkdir, os.environ["TMPDIR"] + "/x"))
with open("/dev/null", "w") as null:
    null.write("x")
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A file of the caller's that anybody may write."""
    with TemporaryDirectory(prefix="shared-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103  the command runs as another user
        file = Path(folder, "file")
        file.write_text("on")
        os.utime(file, (1, 1))
        file.chmod(0o666)
        yield file


@pytest.mark.root
def test_what_anybody_may_write_stays_as_it_is(sandbox: Any, shared: Path) -> None:
    before = shared.stat()
    box = sandbox("landlock")
    answers = box.attack(METADATA, str(shared), cwd="/")
    assert set(answers.values()) <= {"EROFS", "EPERM", "EACCES", "ENOTSUP"}
    assert shared.stat() == before
    assert os.listxattr(shared) == []
    assert box.attack(OWN) == {"own": "0o750", "temporary": "None"}
    assert box.wall.enforcement["host_files"].enforced


@pytest.mark.root
@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_a_workspace_that_anybody_may_write_is_written_as_it_was_mounted(
    sandbox: Any, shared: Path, mode: str
) -> None:
    """Of root's, in which commands stay a user that owns nothing; and what lies beside it is
    read-only all the same."""
    folder = shared.parent / "workspace"
    folder.mkdir()
    folder.chmod(0o777)
    before = shared.stat()
    box = sandbox("landlock", workspace=f"{folder}:{mode}")
    said = box.attack(WORKSPACE, str(folder))
    wanted = {"rw": ("opened", "None", "None"), "ro": ("EROFS", "ENOENT", "EROFS")}
    assert tuple(said.values()) == wanted[mode]
    answers = box.attack(METADATA, str(shared), cwd="/")
    assert set(answers.values()) <= {"EROFS", "EPERM", "EACCES", "ENOTSUP"}
    assert shared.stat() == before
    assert box.wall.enforcement["host_files"].enforced
    assert box.wall.enforcement["user"].enforced


@pytest.mark.root
def test_off_its_times_are_changed(sandbox: Any, shared: Path) -> None:
    box = sandbox("landlock", without={"host_files"})
    assert box.attack(METADATA, str(shared), cwd="/")["times"] == "None"
    assert shared.stat().st_mtime > 1
    assert not box.wall.enforcement["host_files"].enforced
    box = sandbox("landlock", without={"host_files", "seccomp"})
    assert box.attack(METADATA, str(shared), cwd="/")["attribute"] in {"None", "ENOTSUP"}


@pytest.mark.root
def test_the_hosts_mounts_stay_as_they_are(sandbox: Any) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    box = sandbox("landlock")
    assert os.readlink(f"/proc/{box.wall.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    assert Path("/proc/self/mountinfo").read_text() == before


ASKED = """
pid = int(sys.argv[1])
said("session", call("getsid", pid))
pidfd = call("pidfd_open", pid, 0)
info = ctypes.create_string_buffer(64)
said("info", call("ioctl", pidfd, 64 << 16 | 0xC000FF0B, info))
said("own session", call("getsid", 0) > 0)
"""


def test_less_is_told_of_the_hosts_processes(sandbox: Any, bystander: Any) -> None:
    answers = sandbox("landlock").attack(ASKED, str(bystander.pid))
    assert answers == {"session": "EPERM", "info": "ENOTTY", "own session": "True"}
    answers = sandbox("landlock", without={"seccomp"}).attack(ASKED, str(bystander.pid))
    assert answers["session"] == str(os.getsid(bystander.pid))


@pytest.mark.root
def test_the_user_has_a_name_for_those_who_ask_the_environment(sandbox: Any) -> None:
    script = 'import getpass\nsaid("name", getpass.getuser())'
    assert sandbox("landlock").attack(script) == {"name": "sandbox"}


@pytest.mark.root
@pytest.mark.needs("setpriv")
def test_where_root_may_make_no_mount_namespace_it_is_told() -> None:
    """As in most containers. Without CAP_SETPCAP the bounding set stays, too."""
    less = "-sys_admin,-setpcap"
    argv = ["setpriv", f"--bounding-set={less}", f"--inh-caps={less}", sys.executable, "-m"]
    argv += ["agentd", "run", "--json", "--backend", "landlock", "--", "sh", "-c", "touch ~/own"]
    ran = subprocess.run(argv, capture_output=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)["enforcement"]
    assert said["host_files"]["enforced"] is False
    assert "no mount namespace" in said["host_files"]["detail"]
    assert "bounding set is the caller's" in said["capabilities"]["detail"]
