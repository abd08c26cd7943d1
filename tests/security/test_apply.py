"""Threat: a sandbox leaves a project on the host half changed.

Controls: what ``--apply`` would write is measured against the room there is before the first byte;
a file has no name before it is whole, and what a killed agentd left is removed by the next one.

Threat: it, or the folder's owner, changes by root's ``--apply`` what that owner may not change.
Controls: names are changed with the owner's rights (setfsuid); no mount is entered.

Threat: what it closes to its own user keeps that user from the changes, and from the result.
Controls: an ordinary user, who owns them, has them open while they are read; what a command
did is told, whatever becomes of its changes.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentd import Conflict, Sandbox, SandboxError

MOUNTED = """
mount -t tmpfs -o size=1M none "$1" && cd "$1" && shift && echo old | tee first >last && "$@"
ls
cat first last
"""
CHANGE = "echo new >first; head -c 4000000 /dev/urandom >large; echo new >last"


@pytest.mark.root
def test_a_folder_without_room_is_left_as_it_was(tmp_path: Path) -> None:
    """On a file system of 1 MiB, in a mount namespace that only the child sees."""
    run = [
        sys.executable,
        "-m",
        "agentd",
        "run",
        "-w",
        ".:cow",
        "--apply",
        "--",
        "sh",
        "-c",
        CHANGE,
    ]
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", MOUNTED, "sh", str(tmp_path), *run],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "first\nlast\nold\nold\n", ran.stderr
    assert "are left on the disk here" in ran.stderr


RUN = [sys.executable, "-m", "agentd", "run", "--backend", "linux"]
LEFT = ".agentd-0123456789abcdef"


def test_one_that_is_killed_as_it_writes_leaves_nothing(tmp_path: Path) -> None:
    words = ["-w", f"{tmp_path}:cow", "--apply", "--", "sh", "-c"]
    for megabytes in (100, 200, 400):  # as a file that is written too fast was not seen
        script = f"head -c {megabytes}M /dev/zero | tr '\\0' x > large"
        with subprocess.Popen([*RUN, "--disk", "1G", *words, script]) as process:
            seen = False
            while not seen and process.poll() is None:
                seen = any(f"{tmp_path}/" in name for name in opened(process.pid))
            process.kill()
        if seen:
            break
        (tmp_path / "large").unlink()
    assert seen
    assert os.listdir(tmp_path) in ([], ["large"])
    subprocess.run([*RUN, "--", "true"], check=True, timeout=60)  # frees what it held


def opened(pid: int) -> list[str]:
    """The names of its open files."""
    found = []
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def test_what_a_killed_one_left_is_removed_and_nobody_elses(tmp_path: Path) -> None:
    kept = [".agentd-fedcba9876543210", ".agentd-0123456789abcdef0", ".agentd-folder", "file"]
    for name in (LEFT, *kept):
        (tmp_path / name).write_text("x")
    (tmp_path / ".agentd-00000000000000aa").mkdir()
    with (tmp_path / kept[0]).open() as used:
        fcntl.flock(used, fcntl.LOCK_EX)  # as whoever writes it does
        words = ["-w", f"{tmp_path}:cow", "--apply", "--", "sh", "-c", "echo x > made"]
        subprocess.run([*RUN, *words], check=True, timeout=60)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, ".agentd-00000000000000aa", "made"])


BENEATH = """
mkdir -p "$1/d/mnt" && chown -R 1000:1000 "$1" && mount -t tmpfs none "$1/d/mnt" || exit 9
cd "$1/d/mnt" && mkdir -m 700 closed && echo precious > closed/file
cd "$1" && shift && "$@"
cat d/mnt/closed/file && ls d/mnt
"""


@pytest.mark.root
@pytest.mark.parametrize(
    "change",
    ["rm -r d", "rmdir d/mnt", "rm -r d; echo > d", "rm -r d; mkdir -p d/mnt", "> d/mnt/new"],
)
def test_what_is_mounted_beneath_is_not_written(tmp_path: Path, change: str) -> None:
    """No sandbox sees it: what it removed is the empty folder that the mount hides."""
    run = [*RUN, "-w", ".:cow", "--apply", "--", "sh", "-c", change]
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", BENEATH, "sh", str(tmp_path), *run],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "precious\nclosed\n", ran.stderr
    assert "something is mounted at d/mnt, and what it hides was changed" in ran.stderr


@pytest.mark.root
def test_what_the_folders_owner_may_not_remove_stays(tmp_path: Path) -> None:
    """Others go on working there meanwhile: root removes for the owner what that one may."""
    (tmp_path / "d").mkdir()
    for path in (tmp_path, tmp_path / "d"):
        os.chown(path, 1000, 1000)
    with Sandbox.create(workspace=f"{tmp_path}:cow", isolation="namespace", embedded=True) as sb:
        assert sb.run("rmdir d; mkdir d; echo > d/new").exit_code == 0
        (tmp_path / "d" / "roots").mkdir(mode=0o755)
        (tmp_path / "d" / "roots" / "file").write_text("precious")
        with pytest.raises(Conflict, match="d/roots/ may not be written here"):
            sb.apply()
    assert os.listdir(tmp_path / "d") == ["roots"]
    assert (tmp_path / "d" / "roots" / "file").read_text() == "precious"


#: The folder's owner, who puts files of root's in the place of each that agentd has just made.
SWAP = """
import ctypes, os, struct, sys
os.chdir(sys.argv[1])
os.setgid(1000), os.setuid(1000)
libc = ctypes.CDLL(None)
watched = libc.inotify_init1(0)
libc.inotify_add_watch(watched, b".", 0x100)  # IN_CREATE
print("ready", flush=True)
left = [name for name in os.listdir() if name.startswith("roots-")]
while left:
    data, at = os.read(watched, 65536), 0
    while at < len(data):
        size = struct.unpack_from("iIII", data, at)[3]
        name, at = data[at + 16 : at + 16 + size].rstrip(bytes(1)), at + 16 + size
    try:
        os.lstat(name)
        os.rename(left[-1], name)
        left.pop()
    except OSError:
        pass
"""


@pytest.mark.root
def test_the_folders_owner_gets_no_file_of_roots_meanwhile(tmp_path: Path) -> None:
    os.chown(tmp_path, 1000, 1000)
    for number in range(20):
        (tmp_path / f"roots-{number}").write_text("secret")
    with Sandbox.create(workspace=f"{tmp_path}:cow", isolation="namespace", embedded=True) as sb:
        made = "for n in $(seq 300); do ln -s x link$n; mkdir folder$n; echo > file$n; done"
        assert sb.run(["sh", "-c", made]).exit_code == 0
        attacker = [sys.executable, "-c", SWAP, str(tmp_path)]
        with subprocess.Popen(attacker, stdout=subprocess.PIPE) as swapping:
            assert swapping.stdout is not None and swapping.stdout.readline() == b"ready\n"
            with contextlib.suppress(SandboxError):  # what was put in its place is in the way
                sb.apply()
            swapping.kill()
    files = [path for path in tmp_path.iterdir() if path.is_file() and not path.is_symlink()]
    secret = [path for path in files if path.read_text() == "secret"]
    assert len(secret) == 20 and {path.stat().st_uid for path in secret} == {0}


CLOSED = """
mkdir shut; echo 1 > shut/f; echo 2 > f; rm -r d; mkdir d; echo 3 > d/new; chmod 0 shut/f shut f d
"""


@pytest.mark.parametrize("backend", ["linux", "oci"])
def test_what_is_closed_to_its_owner_is_listed_and_applied(as_user: Any, backend: str) -> None:
    project = Path(as_user.home, f"project-{backend}")
    script = f"""
import os
from agentd import Sandbox
os.makedirs("{project}/d"); open("{project}/d/old", "w").close()
with Sandbox.create(workspace="{project}:cow", embedded=True, backend="{backend}") as box:
    box.run({CLOSED!r}, check=True)
    print(box.changes())
    print(box.run("stat -c %a shut f d", check=True).text.split())
    box.apply()
os.chdir("{project}")
print([oct(os.stat(name).st_mode & 0o777) for name in ("shut", "f", "d")])
for name in ("shut", "shut/f", "f", "d"):
    os.chmod(name, 0o700)
print([open(name).read() for name in ("shut/f", "f", "d/new")], os.listdir("d"))
"""
    ran = as_user.python("-c", script)
    if b"Unavailable" in ran.stderr:
        pytest.skip(ran.stderr.decode())
    assert ran.stdout.decode().splitlines() == [
        "('M d/', 'A d/new', 'D d/old', 'A f', 'A shut/', 'A shut/f')",
        "['0', '0', '0']",
        "['0o0', '0o0', '0o0']",
        "['1\\n', '2\\n', '3\\n'] ['new']",
    ], ran.stderr.decode()


OPENED = "echo 1 > a; {}; echo 2 > z"


@pytest.mark.parametrize("backend", ["linux", "oci"])
def test_what_the_folder_closes_to_its_owner_is_told_before_anything_is_written(
    as_user: Any, backend: str
) -> None:
    project = Path(as_user.home, f"opened-{backend}")
    changes = (
        "chmod -R u+w gone; rm -r gone",
        "chmod -R u+w gone; rm -r gone; echo > gone",
        "chmod -R u+w gone; rm -r gone; mkdir gone",
        "chmod 700 shut; echo > shut/new",
    )
    script = f"""
import os
from agentd import Conflict, Sandbox
os.makedirs("{project}/gone/below")
os.chdir("{project}")
os.mkdir("shut")
open("gone/below/f", "w").close()
for name, mode in (("shut", 0), ("gone/below", 0o555)):
    os.chmod(name, mode)
for change in {changes!r}:
    with Sandbox.create(workspace="{project}:cow", embedded=True, backend="{backend}") as box:
        box.run({OPENED!r}.format(change), check=True)
        assert "A z" in box.changes()
        try:
            box.apply()
        except Conflict as error:
            print(error.message, sorted(os.listdir()), os.listdir("gone/below"))
"""
    ran = as_user.python("-c", script)
    if b"Unavailable" in ran.stderr:
        pytest.skip(ran.stderr.decode())
    removed = "the changes cannot be applied: gone/below/ may not be written here"
    assert ran.stdout.decode().splitlines() == [
        *[f"{removed} ['gone', 'shut'] ['f']"] * 3,
        "the changes cannot be applied: shut: Permission denied ['gone', 'shut'] ['f']",
    ], ran.stderr.decode()


def test_what_cannot_be_read_for_want_of_descriptors_is_told(tmp_path: Path) -> None:
    script = f"""
import os, resource
from agentd import Conflict, Sandbox
with Sandbox.create(workspace="{tmp_path}:cow", embedded=True, backend="linux") as box:
    box.run(["mkdir", "-p", "{"/".join(["d"] * 60)}"], check=True)
    most = max(map(int, os.listdir("/proc/self/fd"))) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for act in (box.changes, box.apply):
        try:
            act()
        except Conflict as error:
            print(error.message)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    said = [line.partition(": ")[::2] for line in ran.stdout.splitlines()]
    assert [first for first, _ in said] == ["the changes cannot be applied"] * 2, ran.stderr
    assert all(why.endswith("Too many open files") for _, why in said)
    assert not os.listdir(tmp_path)


def test_what_cannot_be_listed_or_kept_takes_no_result_along(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    deep = "d=x; for i in $(seq 300); do mkdir $d; cd $d; done; echo done"
    for words, code in (
        (("-w", f"{tmp_path}/w:cow", "--apply"), "conflict"),
        (("--save-snapshot", f"{tmp_path}/s"), "sandbox_error"),
    ):
        argv = [*RUN, "--json", "--embedded", *words, "--", "sh", "-ec", deep]
        ran = subprocess.run(argv, capture_output=True, text=True, check=False)
        told = json.loads(ran.stdout)
        assert (ran.returncode, told["exit_code"], told["stdout"]) == (125, 0, "done\n")
        assert told["error"]["code"] == code and "256 folders" in told["error"]["message"]
        assert "256 folders" in ran.stderr
    assert os.listdir(tmp_path) == ["w"] and not os.listdir(tmp_path / "w")
