"""Threat: reading and writing the host's files and secrets.

Controls: the linux wall's root has only programs in it, and its zygote starts without environment
and descriptors; Landlock does the same for the landlock wall, behind it a user that owns nothing.
The same hunt behind no wall (``host``) finds every secret: that is its proof.
"""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PLACES = ("path", "home", "environ", "descriptor", "cwd", "climb", "root", "link")


@dataclass(frozen=True)
class Planted:
    """One secret in many places of the host; ``file`` is the most open of them: mode 0666."""

    marker: str
    file: Path
    home: Path
    holder: int  # pid of a process with it in environment, descriptor and working directory

    def args(self) -> tuple[str, ...]:
        # In halves, so that the hunt does not find its own arguments.
        half = len(self.marker) // 2
        places = (self.marker[:half], self.marker[half:], self.file, self.home, self.holder)
        return tuple(map(str, (*places, os.getpid())))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Planted]:
    marker = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="secrets-") as folder:
        os.chmod(folder, 0o777)  # noqa: S103 nothing but the wall keeps anybody out
        file = Path(folder, "secret")
        file.write_text(marker)
        file.chmod(0o666)
        home = Path.home() / f".agentd-test-{marker[:8]}"
        home.write_text(marker)
        home.chmod(0o600)
        monkeypatch.setenv("AGENTD_TEST_SECRET", marker)
        monkeypatch.chdir(folder)
        fd = os.open(file, os.O_RDONLY)
        os.set_inheritable(fd, True)  # the careless case
        code = "import sys; print(flush=True); sys.stdin.read()"
        try:
            with subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                close_fds=False,
            ) as holder:
                assert holder.stdout is not None
                holder.stdout.readline()
                yield Planted(marker, file, home, holder.pid)
                holder.kill()
        finally:
            os.close(fd)
            home.unlink()


READ = """
import stat
first, second, file, home, holder, caller = sys.argv[1:]
marker = (first + second).encode()
pids = {holder, caller, "1", "self", str(os.getppid())}
pids |= {p for p in tried(os.listdir, "/proc") if p.isdigit()}

def holds(path):
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Pipes and terminals are left alone: reading them would take what is another's.
        return stat.S_ISREG(os.fstat(fd).st_mode) and marker in os.pread(fd, 1 << 20, 0)
    except OSError:
        return False
    finally:
        os.close(fd)

def under_proc(folder):
    for pid in pids:
        names = tried(os.listdir, f"/proc/{pid}/{folder}")
        for name in [] if isinstance(names, str) else names:
            yield f"/proc/{pid}/{folder}/{name}"

mounts = []
for pid in pids:
    try:
        mounts += [line.split()[4] for line in open(f"/proc/{pid}/mountinfo")]
    except OSError:
        continue
parts = file.strip("/").split("/")
tails = ["/".join(parts[n:]) for n in range(len(parts))]
os.symlink(file, name := f"{os.environ.get('TMPDIR', '/tmp')}/link")
said("path", holds(file))
said("home", holds(home))
said("environ", marker in repr(os.environ).encode()
     or any(holds(f"/proc/{pid}/environ") for pid in pids))
said("descriptor", any(map(holds, under_proc("fd")))
     or any(map(holds, (f"/dev/fd/{n}" for n in range(1024)))))
said("cwd", any(holds(f"/proc/{pid}/cwd/{os.path.basename(file)}") for pid in pids))
said("climb", any(holds(f"{base}/{'../' * 20}{file}") for base in [".", *mounts])
     or any(holds(f"{mount}/{tail}") for mount in mounts for tail in tails))
said("root", any(holds(f"/proc/{pid}/root{file}") for pid in pids)
     or any(holds(f"/proc/{pid}/task/{pid}/root{file}") for pid in pids))
said("link", holds(name))
os.unlink(name)
"""

WRITE = """
file = sys.argv[1]
folder = os.path.dirname(file)
said("append", opens(file, os.O_WRONLY | os.O_APPEND))
said("truncate", tried(os.truncate, file, 5))
said("create", opens(f"{folder}/new", os.O_WRONLY | os.O_CREAT))
said("mkdir", tried(os.mkdir, f"{folder}/directory"))
said("hard link", tried(os.link, file, f"{folder}/linked"))
said("take along", tried(os.link, file, "taken"))
said("symlink", tried(os.symlink, file, f"{folder}/pointed"))
said("socket", tried(os.mknod, f"{folder}/fifo", 0o10644))
said("rename", tried(os.rename, file, f"{folder}/moved"))
said("unlink", tried(os.unlink, f"{folder}/moved"))
"""

PROGRAMS = """
said("over", opens("/usr/bin/env", os.O_WRONLY))
said("new", tried(os.mkdir, "/usr/bin/agentd-test"))
said("etc", opens("/etc/passwd", os.O_WRONLY))
said("remove", tried(os.rmdir, "/usr/share/man"))
"""


def test_nothing_of_the_host_is_read(
    sandbox: Callable[..., Any], enclosed: str, planted: Planted
) -> None:
    box = sandbox(enclosed)
    assert box.attack(READ, *planted.args()) == dict.fromkeys(PLACES, "False")


def test_off_every_secret_is_read(sandbox: Callable[..., Any], planted: Planted) -> None:
    """No wall at all: each of the ways leads to the secret."""
    assert sandbox("host").attack(READ, *planted.args()) == dict.fromkeys(PLACES, "True")


def test_root_inside_reads_no_more(sandbox: Callable[..., Any], planted: Planted) -> None:
    """Not even with every capability in its user namespace and no other control."""
    off = {"capabilities", "seccomp", "landlock", "no_new_privs", "dumpable"}
    box = sandbox("linux", without=off, user="root")
    assert box.attack(READ, *planted.args()) == dict.fromkeys(PLACES, "False")


@pytest.mark.root
def test_off_landlock_opens_what_everybody_may_read(
    sandbox: Callable[..., Any], planted: Planted
) -> None:
    """The next layer is a user that owns nothing: the rest stays closed."""
    answers = sandbox("landlock", without={"landlock"}).attack(READ, *planted.args())
    open_to_all = dict.fromkeys(("path", "climb", "link", "root"), "True")
    assert answers == dict.fromkeys(PLACES, "False") | open_to_all


@pytest.mark.root
def test_off_the_owner_of_nothing_owns_everything(
    sandbox: Callable[..., Any], planted: Planted
) -> None:
    off = {"landlock", "identity", "capabilities"}
    answers = sandbox("landlock", without=off).attack(READ, *planted.args())
    assert answers == dict.fromkeys(PLACES, "True")
    shadow = 'said("shadow", opens("/etc/shadow"))'
    assert sandbox("landlock", without=off).attack(shadow) == {"shadow": "opened"}
    assert sandbox("landlock", without={"landlock"}).attack(shadow) == {"shadow": "EACCES"}


@pytest.mark.parametrize("path", ["/etc/shadow", "/etc/gshadow", "/etc/ssl/private", "/root"])
def test_secret_paths(sandbox: Callable[..., Any], enclosed: str, path: str) -> None:
    answer = sandbox(enclosed).attack('said("open", opens(sys.argv[1]))', path)
    assert answer["open"] in {"landlock": ("EACCES", "ENOENT")}.get(enclosed, ("ENOENT",))


def _state(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() if path.is_file() else "" for path in folder.iterdir()}


def test_nothing_of_the_host_is_written(
    sandbox: Callable[..., Any], enclosed: str, planted: Planted
) -> None:
    before = _state(planted.file.parent)
    answers = sandbox(enclosed).attack(WRITE, str(planted.file))
    assert set(answers.values()) <= {"ENOENT", "EACCES", "EXDEV", "EPERM", "EROFS"}
    assert _state(planted.file.parent) == before


def test_off_the_host_is_written(sandbox: Callable[..., Any], planted: Planted) -> None:
    """Landlock is what keeps writers out of the landlock wall's host files."""
    answers = sandbox("landlock", without={"landlock", "seccomp"}).attack(WRITE, str(planted.file))
    linked = {"hard link", "take along"}  # fs.protected_hardlinks may refuse them by itself
    failed = {name: answer for name, answer in answers.items() if answer.startswith("E")}
    assert set(failed) <= linked
    assert "new" in _state(planted.file.parent)
    assert not planted.file.exists()


def test_programs_are_read_only(sandbox: Callable[..., Any], enclosed: str) -> None:
    assert set(sandbox(enclosed).attack(PROGRAMS).values()) <= {"EACCES", "EROFS"}


def test_programs_are_read_only_by_their_mounts_too(sandbox: Callable[..., Any]) -> None:
    """Alone, against root inside. A file that exists is another user's besides: EACCES. So is one
    of /etc, which no sandbox's user owns; without root it is the caller's."""
    off = {"landlock", "seccomp", "capabilities"}
    answers = sandbox("linux", without=off, user="root").attack(PROGRAMS)
    owned = "EACCES" if os.getuid() == 0 else "EROFS"
    assert answers == dict.fromkeys(answers, "EROFS") | {"over": "EACCES", "etc": owned}


@pytest.mark.root
def test_off_programs_are_written(sandbox: Callable[..., Any]) -> None:
    over = 'said("over", opens("/usr/bin/env", os.O_WRONLY))'
    box = sandbox("landlock", without={"landlock", "identity", "capabilities"})
    assert box.attack(over) == {"over": "opened"}
