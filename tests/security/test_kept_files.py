"""Threat: a snapshot whose files are forged, or a sandbox that writes them so, reaches the host.

Controls: what is kept is two plain files, never a tree of a sandbox's on the host's disk; each name
that is read back is one of a folder that was just made, nothing is followed, owners are the new
sandbox's, and devices are left out.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd import Sandbox, SandboxError
from agentd.sandbox import sparse
from agentd.sandbox.backends.linux import kept
from agentd.sandbox.backends.linux.kept import KeptFile
from agentd.sandbox.snapshots import load


def _file(kind: str, name: bytes, depth: int, **other: Any) -> KeptFile:
    given = {"mode": 0o755, "uid": 0, "gid": 0, "accessed": 0, "modified": 0} | other
    return KeptFile(depth=depth, name=name, kind=kind, **given)  # type: ignore[arg-type]


def _forged(path: str, entries: Sequence[KeptFile]) -> None:
    """Put these in place of what a snapshot has, with digests that fit."""
    with open(f"{path}/state/entries", "wb") as file:
        kept.write(file, kept.KeptHead(kept.FORMAT))
        for entry in entries:
            kept.write(file, entry)
    _digested(path)


def _digested(path: str) -> None:
    manifest = msgspec.json.decode(Path(path, "manifest.json").read_bytes())
    for about in manifest["files"]:
        with open(f"{path}/state/{about['path']}", "rb") as file:
            about["size"] = os.fstat(file.fileno()).st_size
            about["digest"] = sparse.digest(file.fileno())
    Path(path, "manifest.json").write_bytes(msgspec.json.encode(manifest))


@pytest.fixture
def snapshot(tmp_path: Path) -> str:
    with Sandbox.create(backend="linux", embedded=True) as sandbox:
        sandbox.run("echo kept > a", check=True)
        return str(sandbox.snapshot(tmp_path / "snapshot").path)


TOP = _file("folder", b"w", 1)


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        ("dots", "is no name"),
        ("slashes", "is no name"),
        ("top", "cannot lie 1 deep"),
        ("by a link", ""),
        ("absolute", "is no name"),
        ("through", "lies in no folder"),
    ],
)
def test_a_forged_name_reaches_nothing(
    attack: str, why: str, snapshot: str, tmp_path: Path
) -> None:
    target = tmp_path / "hosts"
    target.mkdir()
    (target / "secret").write_text("secret")
    where = os.fsencode(target)
    up = b"../" * 40 + where[1:]
    link = _file("link", b"out", 2, target=where)
    entries = {
        "dots": [TOP, _file("file", b"..", 2)],
        "slashes": [TOP, _file("file", up + b"/made", 2)],
        "top": [_file("link", b"w", 1, target=where)],
        "by a link": [TOP, link, _file("hard link", b"x", 2, target=b"w/out/secret")],
        "absolute": [TOP, _file("hard link", b"x", 2, target=where + b"/secret")],
        "through": [TOP, link, _file("file", b"made", 3)],
    }[attack]
    _forged(snapshot, entries)
    with pytest.raises(SandboxError, match="could not be put back") as refused:
        Sandbox.create(snapshot=snapshot, embedded=True)
    assert why in refused.value.cause
    assert os.listdir(target) == ["secret"]
    assert (target / "secret").stat().st_nlink == 1


def test_a_forged_link_leads_inside_the_sandbox(snapshot: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the host")
    link = _file("link", b"out", 2, target=os.fsencode(tmp_path / "secret"))
    _forged(snapshot, [TOP, link])
    with Sandbox.create(snapshot=snapshot, embedded=True) as sandbox:
        assert not sandbox.run("cat out").ok
        assert sandbox.run("readlink out", check=True).text == f"{tmp_path}/secret\n"


def test_a_forged_owner_is_nobody_of_the_hosts(snapshot: str) -> None:
    """Of root's, and with a set-id bit: in the new sandbox it is that one's own."""
    _forged(snapshot, [TOP, _file("file", b"x", 2, mode=0o6755)])
    with Sandbox.create(snapshot=snapshot, embedded=True) as sandbox:
        assert sandbox.run("stat -c %u:%g:%a x", check=True).text == "1000:1000:6755\n"
        assert "nosuid" in sandbox.run("grep ' /workspace ' /proc/self/mounts", check=True).text
    # One before the sandbox's, and as root the first of the next sandbox's.
    for uid in (-2_000_131_072, 1 << 16) if os.geteuid() == 0 else (-2_000_131_072,):
        _forged(snapshot, [TOP, _file("file", b"x", 2, uid=uid)])
        with pytest.raises(SandboxError, match="could not be put back"):
            Sandbox.create(snapshot=snapshot, embedded=True)


def test_a_kind_that_is_no_text_is_damage(snapshot: str) -> None:
    _forged(snapshot, [TOP, _file("file", b"x", 2)])
    entries = Path(snapshot, "state", "entries")
    entries.write_bytes(entries.read_bytes().replace(b"file", b"fil\xe6"))
    _digested(snapshot)
    with pytest.raises(SandboxError, match="could not be put back"):
        Sandbox.create(snapshot=snapshot, embedded=True)
    with pytest.raises(SandboxError, match="cannot be read"):
        load(snapshot).export(f"{snapshot}.tar")


TIMES = """
import os
os.mkdir("d")
for name, seconds in (("far", 1 << 40), ("early", -(1 << 40)), ("d", 1 << 40), ("now", 5)):
    if name != "d":
        open(name, "w").close()
    os.utime(name, (seconds, seconds))
"""


def test_a_file_of_another_age_stops_no_fork_and_no_snapshot(tmp_path: Path) -> None:
    """Programs say of which year a file is: one of the year 36812 once was an error for good."""
    with Sandbox.create(backend="linux", embedded=True) as sandbox:
        sandbox.run(["python3", "-c", TIMES], check=True)
        kept_at = sandbox.snapshot(tmp_path / "snapshot")
        copies = [*sandbox.fork(1), Sandbox.create(snapshot=kept_at, embedded=True)]
        for copy in copies:
            with copy:
                told = copy.run("stat -c %Y far early d now", check=True).text.split()
                assert told == ["9223372036", "-9223372037", "9223372036", "5"]
        kept_at.export(tmp_path / "image.tar")


def test_nothing_of_a_sandbox_is_a_file_of_the_hosts(tmp_path: Path) -> None:
    with Sandbox.create(backend="linux", embedded=True) as sandbox:
        sandbox.run("cp /bin/true x; chmod 6755 x; ln -s /etc/shadow y; mkfifo z", check=True)
        path = Path(sandbox.snapshot(tmp_path / "snapshot").path)
    found = {one.name: one.lstat() for one in path.rglob("*")}
    assert set(found) == {"manifest.json", "state", "entries", "content"}
    for name, info in found.items():
        assert info.st_uid == os.geteuid(), name
        assert stat.S_ISDIR(info.st_mode) or (stat.S_ISREG(info.st_mode) and info.st_nlink == 1)
        assert not info.st_mode & (stat.S_ISUID | stat.S_ISGID), name
    assert path.stat().st_mode & 0o077 == 0
