"""Threat: root of a sandbox reaches what is not the sandbox's, or the agent, by what it may do.

Controls: its capabilities hold over its own ids alone; groups of a mounted folder that are not the
owner's are ids that no process can have; the agent is not dumpable, and PID 1.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentd.model.spec import ExecLimits, Pty

GROUPS = """
found = []
for gid in range(65536):
    if isinstance(tried(os.setresgid, gid, gid, gid), str):
        continue
    if not isinstance(tried(os.stat, "/workspace"), str) and opens(sys.argv[1]) == "opened":
        found.append(gid)
os.setresgid(0, 0, 0)
said("read as", found)
said("given to", [gid for gid in (0, 1, 7, 43, 44, 100) if gid != 0
                  and tried(os.chown, "/workspace/own", -1, gid) is None])
"""
AGENT = """
import glob, resource
said("score", tried(lambda: open("/proc/1/oom_score_adj", "w").write("1000")))
said("score of fork", tried(lambda: open(f"/proc/{os.getppid()}/oom_score_adj", "w").write("1000")))
said("limit", tried(lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (4, 4))))
said("affinity", tried(lambda: os.sched_setaffinity(1, [0])))
said("nice", tried(lambda: os.setpriority(os.PRIO_PROCESS, 1, 19)))
said("nice of all", tried(lambda: os.setpriority(os.PRIO_USER, 0, 19)))
said("trace", call("ptrace", 0x4206, 1, 0, 0))
said("memory", opens("/proc/1/mem", os.O_RDWR))
said("environ", opens("/proc/1/environ"))
said("descriptors", tried(os.listdir, "/proc/1/fd"))
said("root", tried(os.listdir, "/proc/1/root"))
said("comm", opens("/proc/1/comm", os.O_WRONLY))
said("groups", [p for p in glob.glob("/sys/fs/cgroup/**/cgroup.procs", recursive=True)
                if opens(p, os.O_WRONLY) == "opened"])
for number in (9, 19, 15, 2, 11, 31):
    tried(os.kill, 1, number)
tried(os.kill, -1, 19)
"""
REFUSED = {"EPERM", "EACCES", "EROFS", "ENOENT", "EINVAL"}
LIMITS = """
import resource
for name in ("NOFILE", "NPROC", "CORE"):
    number = getattr(resource, "RLIMIT_" + name)
    soft, hard = resource.getrlimit(number)
    try:
        resource.setrlimit(number, (hard + 1, hard + 1))
        said(name, "raised")
    except (ValueError, OSError):
        said(name, "refused")
for path in ("user/max_inotify_watches", "user/max_user_namespaces", "kernel/core_pattern"):
    said(path, opens("/proc/sys/" + path, os.O_WRONLY))
"""


@pytest.mark.root
@pytest.mark.parametrize("mode", ["rw", "ro", "cow"])
def test_it_is_in_no_group_of_a_mounted_folder_but_the_owners(
    sandbox: Callable[..., Any], tmp_path: Path, mode: str
) -> None:
    os.chown(tmp_path, 4321, 4322)
    secret = tmp_path / "of-a-group"
    secret.write_text("secret")
    os.chown(secret, 0, 43)
    secret.chmod(0o640)
    (tmp_path / "own").write_text("own")
    os.chown(tmp_path / "own", 4321, 4322)
    box = sandbox("linux", user="root", workspace=f"{tmp_path}:{mode}")
    said = box.attack(GROUPS, "/workspace/of-a-group")
    assert said["read as"] == "[]"
    assert (tmp_path / "own").stat().st_gid == 4322
    if mode != "cow":
        assert said["given to"] == "[]"


@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_what_is_not_the_owners_is_not_its_own(
    sandbox: Callable[..., Any], tmp_path: Path, mode: str
) -> None:
    """CAP_DAC_OVERRIDE, CHOWN and FOWNER end at the ids that it has."""
    if os.getuid() != 0:
        pytest.skip("a file of somebody else's takes root to make")
    os.chown(tmp_path, 4321, 4322)
    other = tmp_path / "other"
    other.write_text("secret")
    other.chmod(0o600)
    box = sandbox("linux", user="root", workspace=f"{tmp_path}:{mode}")
    said = box.attack("""
path = "/workspace/other"
said("read", opens(path))
said("write", opens(path, os.O_WRONLY))
said("mode", tried(os.chmod, path, 0o666))
said("owner", tried(os.chown, path, 0, 0))
said("times", tried(os.utime, path, (1, 1)))
said("host", opens("/etc/shadow-of-the-host"))
""")
    assert not {"None", "opened"} & set(said.values()), said
    assert (other.stat().st_mode & 0o777, other.stat().st_uid) == (0o600, 0)


def test_the_agent_cannot_be_reached_starved_or_stopped(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux", user="root")
    said = box.run(AGENT).stdout  # its last act may end it
    answers = dict(line.split("=", 1) for line in said.splitlines())
    assert answers.pop("groups") == "[]"
    assert set(answers.values()) <= REFUSED, answers
    assert len(answers) == 12
    assert box.run(["echo", "on"]).stdout == "on\n"
    assert box.guest.call("sys.ping") is not None


def test_off_the_agent_is_reached(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux", user="root", without={"dumpable", "seccomp", "landlock"})
    said = box.run(AGENT, timeout=30.0).stdout  # it stops what would tell of its end
    answers = dict(line.split("=", 1) for line in said.splitlines())
    assert answers["memory"] == answers["environ"] == "opened"
    assert answers["affinity"] == "None"


def test_no_limit_is_lifted(sandbox: Callable[..., Any]) -> None:
    said = sandbox("linux", user="root").attack(LIMITS)
    assert set(said.values()) <= {"refused", "EACCES", "EPERM", "EROFS", "ENOENT"}, said


@pytest.mark.root
def test_what_is_made_by_another_of_its_users_ends_with_it(sandbox: Callable[..., Any]) -> None:
    """Processes of all its ids: none of them is left, and its block is free again."""
    box = sandbox("linux", user="root")
    pid = box.run(
        "import os\npid = os.fork()\n"
        "if pid == 0:\n    os.setsid()\n    os.setresuid(4000, 4000, 4000)\n"
        "    os.closerange(0, 3)\n    signal.pause()\nprint(pid)"
    )
    assert pid.exit.ok, pid.stderr
    lines = Path(f"/proc/{box.wall.save()['pid']}/status").read_text().splitlines()
    (uids,) = [line.split()[1:] for line in lines if line.startswith("Uid:")]
    other = str(int(uids[0]) + 4000)

    def theirs() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/status"):
            try:
                text = path.read_text()
            except OSError:
                continue
            found += [text] if f"Uid:\t{other}\t" in text else []
        return found

    assert len(theirs()) == 1
    box.wall.kill()
    assert theirs() == []


POISON = r"""
echo 'open("/tmp/owned", "a").write(__name__)' > /tmp/poison
for folder in /usr/lib/python3*; do
    rm -rf $folder/__pycache__ $folder/encodings/__pycache__
    for file in $folder/*.py $folder/encodings/*.py; do
        cp --remove-destination /tmp/poison $file
    done
done
rm -rf /etc/* /usr/local; echo done
"""


def test_a_root_that_is_spoilt_leaves_the_agent_and_the_host_as_they_are(
    sandbox: Callable[..., Any],
) -> None:
    before = sorted(os.listdir("/etc")), Path(os.__file__).read_bytes()
    box = sandbox("linux", user="root", writable=True)
    assert box.run(["sh", "-c", POISON], timeout=200.0).stdout == "done\n"
    assert box.run(["ls", "/etc"]).stdout == ""
    assert box.guest.call("sys.ping") is not None
    assert box.run(["sh", "-c", "echo on"], pty=Pty()).stdout == "on\r\n"
    assert box.run(["true"], limits=ExecLimits(cpu=5)).exit.ok
    assert box.run(["sh", "-c", "cat /tmp/owned"]).stdout == ""
    assert (sorted(os.listdir("/etc")), Path(os.__file__).read_bytes()) == before


def test_the_agent_imports_nothing_from_a_root_that_can_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("")
    code = (
        "import sys\nfrom agentd.guest.zygote import image_root\nsys.path.insert(0, sys.argv[1])\n"
        "import late\ndel sys.modules['late']\nimage_root.import_nothing()\nimport late\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'late'\n"), done.stderr
