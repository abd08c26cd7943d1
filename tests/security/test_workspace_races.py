"""Threat: a workspace whose files make the host follow a link, keep a set-id bit, or never end.

Controls: the agent's file operations resolve inside the wall; changes() and apply() follow
nothing, take nothing but files, directories and links, drop set-id bits and are bounded by the
sandbox's disk limit; seccomp refuses set-id bits on what lies in a writable workspace.
"""

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import running

from agentd.model.errors import AgentdError
from agentd.model.spec import ExecRequest

SECRET = "kept by the host"
PLANT = """
outside = sys.argv[1]
os.symlink(outside, "link")
os.symlink(outside + "/secret", "file-link")
os.remove("replaced-by-link"); os.symlink(outside + "/secret", "replaced-by-link")
import shutil; shutil.move("folder", "moved"); os.symlink(outside, "folder")
os.remove("hosts-link"); os.mkdir("hosts-link"); open("hosts-link/secret", "w").write("taken")
os.mkfifo("fifo")
listening = socket.socket(socket.AF_UNIX); listening.bind("listening")
with open("set-id", "w") as file:
    file.write("#!/bin/sh\\n")
said("chmod", tried(os.chmod, "set-id", 0o6755))
os.mkdir("set-id-folder"); tried(os.chmod, "set-id-folder", 0o2777)
open("hard", "w").write("one"); os.link("hard", "link-to-hard")
os.mkdir("a\\nD forged"); open("a\\nD forged/\\x1b[2J", "w")
open(b"not-utf-8-\\xff", "w").write("bytes")
open("n" * 255, "w"); open("\\U0001f600" * 63, "w")
said("xattr", tried(os.setxattr, "hard", "user.overlay.redirect", b"/"))
said("opaque", tried(os.setxattr, "set-id-folder", "user.overlay.opaque", b"y"))
"""
# Swaps a directory for a link to the host's, over and over, as fast as it can.
SWAP = """
outside = sys.argv[1]
os.makedirs("swap/inner", exist_ok=True)
open("swap/inner/secret", "w").write("taken")
os.symlink(outside, "other")
open("file", "w").write("taken"); os.symlink(outside + "/secret", "file-other")
print("up", flush=True)
while True:
    call("renameat2", -100, b"swap", -100, b"other", 2)
    call("renameat2", -100, b"file", -100, b"file-other", 2)
"""


@pytest.fixture
def workspace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "workspace")
        path.mkdir()
        (path / "folder").mkdir()
        (path / "folder" / "inner").write_text("inner")
        (path / "replaced-by-link").write_text("before")
        outside = Path(folder, "outside")
        outside.mkdir()
        (outside / "secret").write_text(SECRET)
        (path / "hosts-link").symlink_to(outside)
        yield path


@pytest.fixture
def outside(workspace: Path) -> Path:
    return workspace.parent / "outside"


def _untouched(outside: Path) -> None:
    assert [entry.name for entry in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == SECRET


def test_apply_follows_nothing_and_takes_no_special_file(
    sandbox: Callable[..., Any], workspace: Path, outside: Path
) -> None:
    box = sandbox("linux", workspace=f"{workspace}:cow")
    box.attack(PLANT, str(outside))
    box.wall.apply()
    _untouched(outside)
    # A link is data: it is there as a link, and nothing was read or written through it.
    for name in ("link", "file-link", "replaced-by-link", "folder"):
        assert (workspace / name).is_symlink()
    assert not (workspace / "hosts-link").is_symlink()
    assert (workspace / "hosts-link" / "secret").read_text() == "taken"
    assert (workspace / "moved" / "inner").read_text() == "inner"
    for name in ("fifo", "listening"):
        assert not os.path.lexists(workspace / name)
    for path in workspace.rglob("*"):
        info = path.lstat()
        assert not info.st_mode & (stat.S_ISUID | stat.S_ISGID), path
        assert stat.S_IFMT(info.st_mode) in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}, path
        assert info.st_uid == os.getuid()
    assert (workspace / "hard").stat().st_nlink == 1
    assert os.listxattr(workspace / "hard") == []


def test_a_name_cannot_forge_another_change(
    sandbox: Callable[..., Any], workspace: Path, outside: Path
) -> None:
    box = sandbox("linux", workspace=f"{workspace}:cow")
    box.attack(PLANT, str(outside))
    changes = box.wall.changes()
    assert "A a\nD forged/" in changes
    assert "D forged/" not in changes
    assert {"D folder", "M folder"} & set(changes)
    assert not [line for line in changes if line[:2] not in {"A ", "M ", "D "}]


def test_a_directory_opened_to_everyone_is_told(
    sandbox: Callable[..., Any], workspace: Path
) -> None:
    """Nothing is applied that is not listed."""
    box = sandbox("linux", workspace=f"{workspace}:cow")
    box.attack("os.chmod('folder', 0o777)")
    assert box.wall.changes() == ("M folder/",)
    box.attack("os.chmod('folder', 0o755)")
    assert box.wall.changes() == ()
    box.wall.apply()
    assert (workspace / "folder").stat().st_mode & 0o777 == 0o755


@pytest.mark.root
def test_the_command_line_shows_it_on_one_line(workspace: Path) -> None:
    script = "mkdir 'a\nD forged'; touch \"$(printf 'x\\033[2J\\rA fine')\" \"$(printf 'b\\377')\""
    ran = subprocess.run(
        [sys.executable, "-m", "agentd", "run", "-w", f"{workspace}:cow", "--", "sh", "-c", script],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert b"\x1b[" not in ran.stderr
    assert b"\r" not in ran.stderr
    assert not [line for line in ran.stderr.splitlines() if line.lstrip().startswith(b"D forged")]


def test_swapped_under_apply_nothing_outside_is_met(
    sandbox: Callable[..., Any], workspace: Path, outside: Path
) -> None:
    box = sandbox("linux", workspace=f"{workspace}:cow")
    with _running(box, SWAP, str(outside)) as running:
        deadline = time.monotonic() + 4
        for _ in range(200):
            # A race that is noticed may fail the call, never lead it astray.
            with contextlib.suppress(OSError, AgentdError):
                box.wall.changes()
                box.wall.apply()
            _untouched(outside)
            for name in ("swap", "file", "file-other"):
                path = workspace / name
                if path.is_file() and not path.is_symlink():
                    assert path.read_text() in {"taken", ""}
            if time.monotonic() > deadline:
                break
        assert running.exit is None, "the swapping did not go on"


@contextlib.contextmanager
def _running(box: Any, attack: str, *args: str) -> Iterator[Any]:
    """A script that has said that it is up, killed at the end."""
    prelude = sys.modules[type(box).__module__].PRELUDE
    argv = ("/usr/bin/python3", "-I", "-c", prelude + attack, *args)
    with box.guest.start(ExecRequest(argv, cwd=box.workspace, timeout=300.0)) as running:
        assert next(iter(running.chunks()))[1] == b"up\n"
        yield running
        running.kill()
        running.wait()


def test_the_swapping_would_mislead_who_follows(
    sandbox: Callable[..., Any], workspace: Path, outside: Path
) -> None:
    """The same attack against a reader that follows links, as the host's own view of a mount."""
    os.chmod(workspace.parent, 0o755)  # noqa: S103 the attack need not hide
    seen = set()
    box = sandbox("linux", workspace=f"{workspace}:rw")
    with _running(box, SWAP, str(outside)):
        deadline = time.monotonic() + 120
        while SECRET not in seen and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                seen.add((workspace / "file").read_text())
    assert SECRET in seen


def test_a_sparse_or_many_linked_file_cannot_fill_the_host(
    sandbox: Callable[..., Any], workspace: Path
) -> None:
    box = sandbox("linux", workspace=f"{workspace}:cow", disk="8M")
    box.attack("os.truncate(os.open('sparse', os.O_RDWR | os.O_CREAT), 1 << 32)")
    box.wall.apply()
    info = (workspace / "sparse").stat()
    assert info.st_size == 1 << 32
    assert info.st_blocks * 512 < 1 << 20, "the holes were written out"
    box.attack(
        "open('data', 'wb').write(b'x' * (4 << 20))\n"
        "for number in range(64): os.link('data', f'data{number}')"
    )
    with pytest.raises((OSError, AgentdError), match="limit"):
        box.wall.apply()
    taken = sum(path.lstat().st_blocks * 512 for path in workspace.rglob("*"))
    assert taken < 20 << 20


@pytest.mark.parametrize("operation", ["read", "write", "list", "stat"])
def test_file_operations_resolve_inside(
    sandbox: Callable[..., Any], workspace: Path, outside: Path, operation: str
) -> None:
    box = sandbox("linux", workspace=f"{workspace}:rw")
    box.attack(
        "os.symlink('/etc/shadow', 'shadow'); os.symlink(sys.argv[1], 'out')\n"
        "os.symlink('/proc/1/root' + sys.argv[1], 'root'); os.symlink('/proc/self/fd/3', 'fd')",
        str(outside),
    )
    for name in ("shadow", "out/secret", "root/secret", "fd"):
        with contextlib.suppress(AgentdError):
            answer = _operate(box, operation, f"/workspace/{name}")
            assert SECRET not in str(answer)
            assert "root:" not in str(answer)
            assert operation in {"stat", "write"}, f"{name}: {answer}"
    _untouched(outside)
    if os.getuid() == 0:
        assert "pwned" not in Path("/etc/shadow").read_text()


def _operate(box: Any, operation: str, path: str) -> object:
    files = box.guest.files
    if operation == "read":
        return files.read(path)
    if operation == "write":
        return files.write(path, b"pwned")
    return files.list(path) if operation == "list" else files.stat(path)


def test_no_wall_would_read_through_the_link(
    sandbox: Callable[..., Any], workspace: Path, outside: Path
) -> None:
    box = sandbox("host", workspace=f"{workspace}:rw")
    (workspace / "out").symlink_to(outside)
    answer = _operate(box, "read", f"{workspace}/out/secret")
    assert answer == SECRET.encode()


SET_ID = """
open("program", "w").write("#!/bin/sh\\n"); os.chmod("program", 0o755)
fd = os.open("program", os.O_RDWR)
for name, bit in (("uid", 0o4755), ("gid", 0o2755)):
    said(f"chmod {name}", tried(os.chmod, "program", bit))
    said(f"fchmod {name}", tried(os.fchmod, fd, bit))
    said(f"fchmodat {name}", call("fchmodat", -100, b"program", bit))
    said(f"fchmodat2 {name}", call("fchmodat2", -100, b"program", bit, 0))
    said(f"mknod {name}", call("mknodat", -100, b"node-" + name.encode(), 0o100000 | bit, 0))
    said(f"open {name}", tried(os.open, "opened-" + name, os.O_CREAT | os.O_WRONLY, bit))
    said(f"unnamed {name}", tried(os.open, ".", os.O_TMPFILE | os.O_WRONLY, bit))
    how = struct.pack("=3Q", os.O_CREAT | os.O_WRONLY, bit, 0)
    made = call("openat2", -100, b"opened2-" + name.encode(), how, 24)
    said(f"openat2 {name}", made if isinstance(made, str) else "made")
"""


@pytest.mark.root
@pytest.mark.parametrize("user", ["sandbox", "root"])
def test_no_set_id_program_is_made_for_the_host(
    sandbox: Callable[..., Any], workspace: Path, user: str
) -> None:
    """Files in a writable workspace belong to its owner: such a bit would hand out that user."""
    said = sandbox("linux", workspace=f"{workspace}:rw", user=user).attack(SET_ID)
    assert not _set_id(workspace), said
    assert (workspace / "program").stat().st_mode & 0o777 == 0o755


@pytest.mark.root
def test_without_seccomp_such_a_program_is_made(
    sandbox: Callable[..., Any], workspace: Path
) -> None:
    said = sandbox("linux", without={"seccomp"}, workspace=f"{workspace}:rw").attack(SET_ID)
    assert "program" in _set_id(workspace), said
    assert (workspace / "program").stat().st_uid == 0


def _set_id(folder: Path) -> list[str]:
    bits = stat.S_ISUID | stat.S_ISGID
    return [path.name for path in folder.rglob("*") if path.lstat().st_mode & bits]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("truncate -s 1P z", b"z has 1125899906842624 bytes"),
        ("d=z; for i in $(seq 300); do d=$d/x; done; mkdir -p $d", b"nested deeper than 256"),
    ],
)
@pytest.mark.parametrize("way", ["cli", "daemon"])
def test_all_changes_are_applied_or_none(workspace: Path, made: str, said: bytes, way: str) -> None:
    script = f"echo 1 > a; mkdir b; echo 1 > b/c; rm replaced-by-link; {made}"
    before = sorted(path.relative_to(workspace) for path in workspace.rglob("*"))
    if way == "cli":
        words = f"run -w {workspace}:cow --apply -- sh -ec".split()
        ran = subprocess.run(
            [sys.executable, "-m", "agentd", *words, script],
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode not in (0, None)
        told = ran.stderr
    else:
        with running() as daemon:
            box = daemon.sandbox(workspace=f"{workspace}:cow")
            body = {"cmd": ["sh", "-ec", script]}
            ended = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", body).json
            assert ended["exit_code"] == 0, ended
            answer = daemon.ask("POST", f"/v1/sandboxes/{box}/apply")
            assert answer.status == 409
            told = answer.body
    assert said in told and b"internal error" not in told, told
    assert b"agentd cp" in told
    assert sorted(path.relative_to(workspace) for path in workspace.rglob("*")) == before


def test_many_changes_are_told_by_a_daemon(workspace: Path) -> None:
    """More than a message between it and its supervisor holds."""
    with running() as daemon:
        box = daemon.sandbox(workspace=f"{workspace}:cow")
        script = "mkdir many; cd many; for i in $(seq 4000); do : > a-file-called-$i; done"
        body = {"cmd": ["sh", "-ec", script]}
        assert daemon.ask("POST", f"/v1/sandboxes/{box}/exec", body).json["exit_code"] == 0
        answer = daemon.ask("GET", f"/v1/sandboxes/{box}/changes")
        assert answer.status == 200, answer.body
        assert len(answer.json) == 4001
