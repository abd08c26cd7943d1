import os

import msgspec
import pytest

from agentd.model.errors import InvalidInput, NotFound, Refused, SandboxError
from agentd.model.limits import Limits
from agentd.model.mount import Mount, MountMode
from agentd.model.snapshot import SnapshotManifest
from agentd.model.spec import SandboxSpec
from agentd.sandbox import snapshots

ABOUT = SnapshotManifest(
    id="snp-1",
    fidelity="memory",
    backend="qemu",
    level="microvm",
    spec=SandboxSpec(limits=Limits(memory=64 << 20), env={"A": "1"}),
)


def capture(folder):
    with open(f"{folder}/memory", "wb") as file:
        file.write(b"m" * 100_000)
    os.mkdir(f"{folder}/devices")
    with open(f"{folder}/devices/disk", "wb") as file:
        file.write(b"d")


@pytest.fixture
def kept(tmp_path):
    return snapshots.write(str(tmp_path / "kept"), capture, ABOUT, kept=True)


def test_what_is_written_is_what_is_read(kept, tmp_path):
    found = snapshots.load(tmp_path / "kept")
    snapshots.verify(found)
    assert found.manifest == kept.manifest
    assert (found.id, found.backend, found.fidelity) == ("snp-1", "qemu", "memory")
    assert found.spec == ABOUT.spec
    assert found.size == 100_001
    assert found.manifest.agentd and found.manifest.created
    assert [file.path for file in found.manifest.files] == ["devices/disk", "memory"]
    assert sorted(os.listdir(tmp_path)) == ["kept"]
    for folder in (found.path, found.state):
        assert os.stat(folder).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("error", [SandboxError("the guest is gone"), KeyboardInterrupt()])
def test_a_capture_that_fails_leaves_nothing(tmp_path, error):
    def fail(folder):
        capture(folder)
        raise error

    with pytest.raises(type(error)):
        snapshots.write(str(tmp_path / "kept"), fail, ABOUT, kept=True)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_names_the_fix(tmp_path):
    def fail(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(SandboxError, match=r"No space left on device \(make room"):
        snapshots.write(str(tmp_path / "kept"), fail, ABOUT, kept=True)


def test_a_path_that_is_taken_is_left_alone(kept):
    def never(folder):
        pytest.fail("nothing may be captured")

    with pytest.raises(InvalidInput, match="exists already"):
        snapshots.write(kept.path, never, ABOUT, kept=True)
    snapshots.verify(kept)


def test_a_path_that_cannot_be_is_the_callers_mistake(tmp_path):
    with pytest.raises(InvalidInput, match="no snapshot can be written"):
        snapshots.write(str(tmp_path / "no" / "kept"), capture, ABOUT, kept=True)


def _flip(path):
    with open(path, "r+b") as file:
        file.seek(5)
        file.write(b"X")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda state: _flip(f"{state}/memory"), "memory is not what was written"),
        (lambda state: os.truncate(f"{state}/memory", 99_999), "memory is not what was written"),
        (lambda state: os.unlink(f"{state}/devices/disk"), "devices/disk is missing"),
        (lambda state: os.mkfifo(f"{state}/fifo"), "fifo is not a plain file"),
        (lambda state: os.symlink("memory", f"{state}/link"), "link is not a plain file"),
        (lambda state: open(f"{state}/more", "w").close(), "more is not what was written"),
        (lambda state: os.rename(state, f"{state}-away"), "No such file"),
    ],
)
def test_damage_is_found(kept, damage, why):
    damage(kept.state)
    with pytest.raises(SandboxError, match=why):
        snapshots.verify(snapshots.load(kept.path))


def _edit(kept, **fields):
    path = f"{kept.path}/manifest.json"
    with open(path, "wb") as file:
        file.write(msgspec.json.encode(msgspec.structs.replace(kept.manifest, **fields)))


@pytest.mark.parametrize("text", [b"", b"{", b'{"format":1}', b"[" * 100_000, b" " * (1 << 20)])
def test_a_manifest_that_is_none_is_damage(kept, text):
    with open(f"{kept.path}/manifest.json", "wb") as file:
        file.write(text + b"\n")
    with pytest.raises(SandboxError, match="is damaged: its manifest"):
        snapshots.load(kept.path)


def test_another_format_says_which(kept):
    _edit(kept, format=9, agentd="9.0")
    with pytest.raises(SandboxError, match=r"has format 9, and this agentd reads 1 \(use agentd 9"):
        snapshots.load(kept.path)


def test_a_forged_manifest_cannot_ask_for_the_hosts_files(kept):
    mounts = (Mount("/etc", "/data", MountMode.RW),)
    _edit(kept, spec=msgspec.structs.replace(kept.spec, mounts=mounts))
    with pytest.raises(SandboxError, match="asks for host directories"):
        snapshots.load(kept.path)


def test_a_manifest_that_is_a_link_is_not_followed(kept, tmp_path):
    os.rename(f"{kept.path}/manifest.json", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", f"{kept.path}/manifest.json")
    with pytest.raises(NotFound, match="no snapshot at"):
        snapshots.load(kept.path)


def test_what_others_can_write_is_not_trusted(kept):
    os.chmod(kept.path, 0o720)
    with pytest.raises(SandboxError, match=r"could have been written by others .*chmod go-w"):
        snapshots.load(kept.path)


@pytest.mark.root
def test_what_another_user_owns_is_not_trusted(kept):
    os.chown(kept.path, 1234, -1)
    with pytest.raises(SandboxError, match="could have been written by others"):
        snapshots.load(kept.path)


def test_the_number_of_files_is_bounded(tmp_path):
    def many(folder):
        for number in range(snapshots.MAX_FILES + 1):
            open(f"{folder}/{number}", "w").close()

    with pytest.raises(SandboxError, match="over 64 files"):
        snapshots.write(str(tmp_path / "kept"), many, ABOUT, kept=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kept_at_end", [True, False])
def test_a_block_deletes_what_nobody_named(tmp_path, kept_at_end):
    with snapshots.write(str(tmp_path / "s"), capture, ABOUT, kept=kept_at_end) as snapshot:
        assert "snp-1 qemu memory" in repr(snapshot)
    assert os.path.exists(snapshot.path) is kept_at_end
    snapshot.delete()
    snapshot.delete()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"env": {}},
        {"backend": "qemu"},
        {"egress": ("npm",)},
        {"limits": Limits(memory=64 << 20, timeout=1, output=1)},
    ],
)
def test_what_a_machine_does_not_know_of_may_differ(fields):
    snapshots.check_spec(msgspec.structs.replace(ABOUT.spec, **fields), ABOUT.spec)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"limits": Limits(memory=128 << 20)}, "memory"),
        ({"net": "host"}, "net"),
        ({"image": "other"}, "image"),
        ({"user": "0"}, "user"),
        ({"hostname": "x"}, "hostname"),
        ({"mounts": (Mount("/etc", "/data", MountMode.RO),)}, "mounts"),
    ],
)
def test_the_machine_may_not(fields, name):
    with pytest.raises(Refused, match=f"{name} differs from the snapshot's"):
        snapshots.check_spec(msgspec.structs.replace(ABOUT.spec, **fields), ABOUT.spec)
