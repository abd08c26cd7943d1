"""Threat: overwriting the program that runs on the host through /proc/PID/exe (CVE-2019-5736).

Controls: the agent is not dumpable, so its /proc entries are closed; programs come from read-only
mounts and belong to nobody inside (linux); Landlock closes /proc and the programs' directories to
writing, and the user inside owns none (landlock).
"""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Changes nothing where it succeeds: a hole must be found without making use of it.
ATTACK = """
agent = sys.argv[1]
for name in ("exe", "root", "cwd", "fd", "mem", "environ", "maps"):
    path = f"/proc/{agent}/{name}"
    if name in ("exe", "cwd", "root"):
        said(f"link {name}", tried(os.readlink, path) if isinstance(tried(os.readlink, path), str)
             and tried(os.readlink, path)[0] == "E" else "read")
    said(f"open {name}", opens(path))
said("write agent", opens(f"/proc/{agent}/exe", os.O_WRONLY))
said("write mem", opens(f"/proc/{agent}/mem", os.O_RDWR))
said("write self", opens("/proc/self/exe", os.O_WRONLY))
said("write program", opens(os.path.realpath(sys.executable), os.O_WRONLY))
said("append program", opens(os.path.realpath(sys.executable), os.O_WRONLY | os.O_APPEND))
said("write library", opens(sys.argv[2], os.O_WRONLY))
said("new program", opens("/usr/bin", os.O_WRONLY | os.O_TMPFILE))  # leaves nothing behind
said("chmod", tried(os.chmod, sys.argv[2], 0o755))  # what it is
"""
# A script whose interpreter is /proc/self/exe makes the starter run itself once more, from inside.
SHEBANG = """
import subprocess
path = os.path.join(sys.argv[1], "start")
with open(path, "w") as file:
    file.write("#!/proc/self/exe\\n")
os.chmod(path, 0o755)
print(path)
"""
# Not ETXTBSY: a running program is busy for everybody, that tells of no control.
DENIED = {"EACCES", "EPERM", "EROFS", "ENOENT"}
LIBC = next(
    str(path)
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/lib")
    for path in Path(folder).glob("libc.so.6")
    if path.stat().st_mode & 0o777 == 0o755
)


def _agent(box: Any) -> str:
    """The agent's pid as commands inside see it."""
    pid: str = box.run(["sh", "-c", "echo $PPID"]).stdout.strip()
    return pid


def test_no_program_of_the_host_opens_for_writing(
    sandbox: Callable[..., Any], enclosed: str
) -> None:
    box = sandbox(enclosed)
    said = box.attack(ATTACK, _agent(box), LIBC)
    if enclosed == "gvisor":  # as docs/gvisor.md says; and of what has no name it knows nothing
        for name in ("open fd", "open environ", "open maps"):
            assert said.pop(name) == "opened"
        assert said.pop("new program") == "ENOTSUP"
    assert set(said.values()) <= DENIED, said


def test_root_inside_can_neither(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux", user="root")
    said = box.attack(ATTACK, _agent(box), LIBC)
    assert "opened" not in said.values(), said
    assert said["chmod"] == said["new program"] == "EROFS"


def test_without_dumpable_the_agent_lies_open(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux", without={"dumpable", "landlock"}, user="root")
    said = box.attack(ATTACK, _agent(box), LIBC)
    assert said["link exe"] == "read"
    assert said["open fd"] == said["open mem"] == "opened", said
    # The read-only mount still stands, and host root's files belong to nobody inside.
    assert said["write agent"] in {"EACCES", "EROFS"}
    assert said["chmod"] == "EROFS"


@pytest.mark.root
def test_without_landlock_and_another_user_programs_open(sandbox: Callable[..., Any]) -> None:
    without = {"landlock", "identity", "capabilities", "dumpable", "seccomp"}
    box = sandbox("landlock", without=without)
    said = box.attack(ATTACK, _agent(box), LIBC)
    assert said["open mem"] == said["write mem"] == "opened"
    assert said["write library"] == "opened"
    assert said["write self"] == "ETXTBSY"  # permitted, and only busy


@pytest.mark.parametrize("net", ["none", "host"])
def test_the_starter_run_from_inside_is_not_writable(
    sandbox: Callable[..., Any], enclosed: str, net: str
) -> None:
    box = sandbox(enclosed, net=net)
    program = Path(os.path.realpath(sys.executable))
    before = hashlib.sha256(program.read_bytes()).digest()
    path = box.run(SHEBANG, box.workspace).stdout.strip()
    # Whatever it ran as, it was given the script as its input and could do no harm by itself.
    ran = box.run([path])
    assert ran.exit.cause.code in {"exited", "spawn_failed", "signalled"}
    attack = "import os\nos.open('/proc/self/exe', os.O_WRONLY)\nprint('opened')\n"
    box.run(["sh", "-c", f"printf '#!/proc/self/exe\\n{attack!r}' > {path}"])
    assert "opened" not in box.run([path]).stdout
    assert hashlib.sha256(program.read_bytes()).digest() == before
