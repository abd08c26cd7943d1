"""Files of a disk, written down and put back: the same, whatever they are; and what is forged."""

import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.model.errors import BackendLost, Conflict, SandboxError
from agentd.sandbox.backends.linux import kept, restoring, saving
from agentd.sandbox.backends.linux.kept import KeptFile
from agentd.sandbox.backends.linux.saving import SavedDisk


def nothing() -> None: ...


def _all_of(disk: int) -> SavedDisk:
    return SavedDisk(disk, used=0, size=1 << 40)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "disk").mkdir()
    fd = os.open(tmp_path / "disk", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[int]:
    """A disk that is empty."""
    (tmp_path / "other").mkdir()
    fd = os.open(tmp_path / "other", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def work(disk: int) -> Path:
    path = Path(os.readlink(f"/proc/self/fd/{disk}")) / "w"
    path.mkdir()
    return path


@pytest.fixture
def state(tmp_path: Path) -> str:
    (tmp_path / "state").mkdir()
    return str(tmp_path / "state")


def _facts(top: int) -> dict[bytes, Any]:
    found = {}
    for folder, folders, files, fd in os.fwalk(b".", dir_fd=top):
        for name in (*folders, *files):
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            found[folder + b"/" + name] = (
                info.st_mode,
                info.st_uid,
                info.st_nlink,
                info.st_mtime_ns,
                0 if stat.S_ISDIR(info.st_mode) else info.st_size,
            )
    return found


def test_all_comes_back_as_it_was(disk: int, other: int, work: Path, state: str) -> None:
    (work / "data").write_bytes(b"some\n" * 5000)
    (work / "data").chmod(0o4751)
    os.link(work / "data", work / "again")
    (work / "link").symlink_to("/etc/shadow")
    (work / "sub/deeper").mkdir(parents=True)
    os.link(work / "data", work / "sub/third")
    os.mkfifo(work / "pipe", 0o620)
    Path(os.fsdecode(os.fsencode(work) + b"/\xff\n")).write_text("odd")
    with (work / "sparse").open("wb") as file:
        file.truncate(1 << 36)
        file.seek(1 << 35)
        file.write(b"amid")
    os.setxattr(work / "data", "user.origin", b"\0here")
    (work / "sub").chmod(0o500)
    os.utime(work / "sub", ns=(1, 2))
    os.utime(work / "link", ns=(3, 4), follow_symlinks=False)
    before = _facts(disk)
    saving.save(state, _all_of(disk), None, still=True, check=nothing)
    assert sorted(os.listdir(state)) == ["content", "entries"]
    assert os.stat(f"{state}/content").st_size < 1 << 20, "holes are not kept"
    restoring.restore(state, other, None)
    assert _facts(other) == before
    copy = Path(os.readlink(f"/proc/self/fd/{other}")) / "w"
    assert (copy / "data").read_bytes() == b"some\n" * 5000
    assert os.getxattr(copy / "sub/third", "user.origin") == b"\0here"
    assert os.readlink(copy / "link") == "/etc/shadow"
    with (copy / "sparse").open("rb") as file:
        file.seek(1 << 35)
        assert file.read(8) == b"amid\0\0\0\0"
    assert os.stat(copy / "sparse").st_blocks < 64
    (work / "sub").chmod(0o700)
    (copy / "sub").chmod(0o700)


def test_what_has_no_meaning_without_its_process_is_left_out(
    disk: int, other: int, work: Path, state: str
) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{disk}/w/socket")
        (work / "file").touch()
        saving.save(state, _all_of(disk), None, still=True, check=nothing)
    restoring.restore(state, other, None)
    assert os.listdir(Path(os.readlink(f"/proc/self/fd/{other}")) / "w") == ["file"]


def test_files_that_change_meanwhile_are_no_snapshot(disk: int, work: Path, state: str) -> None:
    """Where nothing stops the sandbox: never half of one moment and half of another."""
    for name in "abc":
        (work / name).touch()

    def write_on() -> None:
        with (work / "c").open("a") as file:
            file.write("more")

    with pytest.raises(Conflict, match="faster than they can be copied") as caught:
        saving.save(state, _all_of(disk), None, still=False, check=write_on)
    assert caught.value.remediation
    assert os.listdir(state) == []
    calls = 0

    def write_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            write_on()

    saving.save(state, _all_of(disk), None, still=False, check=write_once)
    (entry,) = [one for one in _entries(state) if one.name == b"c"]
    assert entry.size == (work / "c").stat().st_size


def test_it_ends_when_the_sandbox_does(disk: int, work: Path, state: str) -> None:
    (work / "file").touch()

    def killed() -> None:
        raise BackendLost("it was killed")

    with pytest.raises(BackendLost):
        saving.save(state, _all_of(disk), None, still=True, check=killed)


def test_what_is_too_deep_is_named(disk: int, work: Path, state: str) -> None:
    deep = work
    for _ in range(kept.MAX_DEPTH + 1):
        deep = deep / "d"
    deep.mkdir(parents=True)
    with pytest.raises(SandboxError, match="nested deeper than 256"):
        saving.save(state, _all_of(disk), None, still=True, check=nothing)


def _entries(state: str) -> list[KeptFile]:
    with open(f"{state}/entries", "rb") as file:
        return list(kept.read(file))


def _forge(state: str, *entries: KeptFile, content: bytes = b"") -> None:
    Path(state, "content").write_bytes(content)
    with open(f"{state}/entries", "wb") as file:
        kept.write(file, kept.KeptHead(kept.FORMAT))
        for entry in entries:
            kept.write(file, entry)


def _entry(kind: str = "file", name: bytes = b"x", depth: int = 2, **other: Any) -> KeptFile:
    given = {"mode": 0o644, "uid": 0, "gid": 0, "accessed": 0, "modified": 0} | other
    return KeptFile(depth=depth, name=name, kind=kind, **given)  # type: ignore[arg-type]


TOP = _entry("folder", b"w", 1, mode=0o755)
OUT = _entry("link", b"out", target=b"/etc")


@pytest.mark.parametrize(
    "entries",
    [
        (TOP, _entry(name=b"..")),
        (TOP, _entry(name=b"../../x")),
        (TOP, _entry(name=b"")),
        (TOP, _entry(name=b"a\0b")),
        (TOP, _entry(depth=3)),
        (_entry(name=b"w", depth=1),),
        (_entry("link", b"w", 1, target=b"/"),),
        (TOP, OUT, _entry("hard link", target=b"w/out/passwd")),
        (TOP, _entry("hard link", target=b"../../etc/passwd")),
        (TOP, _entry("hard link", target=b"/etc/passwd")),
        (TOP, OUT, _entry("hard link", target=b"w/out")),
        (TOP, _entry("hard link", target=b"w")),
        (TOP, _entry(size=4, data=((0, 4),))),
        (TOP, _entry(size=4, data=((2, 4),))),
        (TOP, _entry(), _entry()),
        (TOP, _entry(mode=0o100644)),
        (TOP, _entry(uid=-1)),
        (TOP, _entry(attributes={"security.capability": b""})),
        (TOP, _entry(attributes={"trusted.overlay.opaque": b"y"})),
    ],
    ids=repr,
)
def test_what_is_forged_is_refused(
    other: int, state: str, entries: tuple[KeptFile, ...], tmp_path: Path
) -> None:
    _forge(state, *entries)
    with pytest.raises(SandboxError, match="could not be put back"):
        restoring.restore(state, other, None)
    assert sorted(os.listdir(tmp_path)) == ["other", "state"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data + b"\xff\xff\xff\xff",
        lambda data: b"",
        lambda data: data[:4] + b"\x91\x02" + data[6:],
        lambda data: data + (1).to_bytes(4, "big") + msgspec.msgpack.encode(7),
    ],
)
def test_damage_is_told(other: int, state: str, spoil: Callable[[bytes], bytes]) -> None:
    _forge(state, TOP, _entry())
    Path(state, "entries").write_bytes(spoil(Path(state, "entries").read_bytes()))
    with pytest.raises(SandboxError, match="could not be put back"):
        restoring.restore(state, other, None)


def test_an_owner_is_one_of_the_new_sandboxes(disk: int, work: Path, state: str) -> None:
    """Of no sandbox, in a disk whose ids begin elsewhere."""
    (work / "file").touch()
    with pytest.raises(SandboxError, match="not one of the sandbox's"):
        saving.save(state, _all_of(disk), 1_000_000, still=True, check=nothing)


def test_a_record_longer_than_is_read_is_not_written() -> None:
    """So many stretches take 14 GB of a disk; the bound is the reader's."""
    many = kept.KeptFile(
        1, b"", "folder", 0o755, 0, 0, 0, 0, attributes={"user.a": bytes(64 << 20)}
    )
    whole = io.BytesIO()
    with pytest.raises(kept.TooLong):
        kept.write(whole, many)
    assert whole.getvalue() == b""
