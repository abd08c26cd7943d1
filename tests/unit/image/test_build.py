import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentd.image import build as build_module
from agentd.image import cpio
from agentd.image.build import build, ensure, is_stale, rebuild
from agentd.image.model import CMDLINE, Corrupt, NotFound
from agentd.image.store import Store
from agentd.model.errors import InvalidInput, Unavailable


def test_an_image_holds_the_base_the_agent_and_an_init(store: Store, source) -> None:
    steps: list[str] = []
    image = build(store=store, source=source, progress=lambda what, done, total: steps.append(what))
    tree = cpio.read(Path(image.initramfs).read_bytes())
    assert tree["/etc/name"].data == b"value\n"
    assert b"agentd" in tree["/usr/lib/agentd/agent"].data
    init = tree["/init"]
    assert init.mode & 0o777 == 0o755
    assert b"/usr/bin/python3.13 -I -S -E /usr/lib/agentd/start.pyc" in init.data
    assert b"@" not in init.data.replace(b'"$@"', b"")
    assert image.kernel_release == "6.1.0-test"
    assert image.packages == {"thing": "1"}
    assert image.cmdline == CMDLINE
    assert "making" in steps
    assert store.get() == image


def test_the_same_is_built_twice(store: Store, source, tmp_path: Path) -> None:
    first = build(store=store, source=source)
    second = build(store=Store(str(tmp_path / "elsewhere")), source=source)
    assert first.digest == second.digest
    assert Path(first.initramfs).read_bytes() == Path(second.initramfs).read_bytes()


def test_what_is_there_is_not_built_again(store: Store, source) -> None:
    image = ensure(store=store, source=source)
    assert ensure(store=store, source=source) == image
    assert source.made == 1


def test_a_changed_agent_is_built_in(store: Store, source, monkeypatch) -> None:
    first = ensure(store=store, source=source)
    sources = build_module.bundle.sources() | {"agentd/guest/new.py": b"x = 1\n"}
    monkeypatch.setattr(build_module.bundle, "sources", lambda: sources)
    assert is_stale(store, "default", source)
    second = ensure(store=store, source=source)
    assert second.agent != first.agent
    assert second.digest != first.digest


def test_changed_packages_are_built_in(store: Store, source, monkeypatch) -> None:
    ensure(store=store, source=source)
    source.version = "2"
    assert not is_stale(store, "default", source)  # apt's lists have not changed
    monkeypatch.setattr(build_module, "lists_stamp", lambda: "lists-2")
    assert ensure(store=store, source=source).packages == {"thing": "2"}


def test_new_lists_without_new_packages_change_nothing(store: Store, source, monkeypatch) -> None:
    image = ensure(store=store, source=source)
    monkeypatch.setattr(build_module, "lists_stamp", lambda: "lists-2")
    assert ensure(store=store, source=source) == image
    source.failure = AssertionError("looked up again")
    assert ensure(store=store, source=source) == image


def test_a_sound_image_is_used_when_apt_fails(store: Store, source, monkeypatch) -> None:
    image = ensure(store=store, source=source)
    monkeypatch.setattr(build_module, "lists_stamp", lambda: "lists-2")
    source.failure = Unavailable("apt is gone")
    assert ensure(store=store, source=source) == image


def test_a_changed_recipe_is_followed(store: Store, source, monkeypatch) -> None:
    ensure(store=store, source=source)
    monkeypatch.setattr(build_module, "recipe", lambda: "another")
    ensure(store=store, source=source)
    assert source.made == 2


@pytest.mark.parametrize("file", ["vmlinux", "initramfs.cpio", "manifest.json"])
def test_a_damaged_image_is_built_again(file: str, store: Store, source) -> None:
    image = ensure(store=store, source=source)
    (Path(image.folder) / file).write_bytes(b"damaged")
    assert ensure(store=store, source=source).digest == image.digest
    assert source.made == 2


def test_a_failing_build_leaves_the_old_image_and_no_rest(store: Store, source) -> None:
    image = build(store=store, source=source)
    source.failure = Unavailable("no network", remediation="plug it in")
    with pytest.raises(Unavailable, match="plug it in"):
        build(store=store, source=source)
    assert store.get() == image
    assert [n for n in os.listdir(f"{store.folder}/.builds") if n.startswith(".new")] == []


def test_what_a_crashed_build_left_is_removed(store: Store, source) -> None:
    rest = Path(store.inner(".builds")) / ".new-crashed"
    rest.mkdir()
    (rest / "vmlinux").write_bytes(b"half")
    with pytest.raises(NotFound):
        store.get()
    build(store=store, source=source)
    assert not rest.exists()


def test_builders_at_once_build_once(store: Store, source) -> None:
    barrier = threading.Barrier(4)

    def one(_: int) -> str:
        barrier.wait()
        return ensure(store=store, source=source).digest

    with ThreadPoolExecutor(4) as threads:
        digests = set(threads.map(one, range(4)))
    assert len(digests) == 1
    assert source.made == 1


def test_names_stand_side_by_side(store: Store, source) -> None:
    build("one", store=store, source=source)
    build("two", "busybox", store=store, source=source)
    assert store.ls() == ["one", "two"]
    assert store.get("two").base == "busybox"
    store.remove("one")
    assert store.get("two").name == "two"


def test_only_the_default_is_built_unasked(store: Store, source) -> None:
    with pytest.raises(NotFound, match="--name other"):
        ensure("other", store=store, source=source)


def test_an_unknown_base_is_refused(store: Store, source) -> None:
    with pytest.raises(InvalidInput, match="use one of: debian, busybox"):
        build(base="alpine", store=store, source=source)


# --- the user's own files ---


@pytest.fixture
def own(tmp_path: Path, vmlinux) -> dict[str, str]:
    (tmp_path / "kernel").write_bytes(vmlinux(release="5.10.9"))
    (tmp_path / "initramfs").write_bytes(b"070701" + b"0" * 104)
    (tmp_path / "rootfs").write_bytes(bytes(1080) + b"\x53\xef" + bytes(100))
    return {name: str(tmp_path / name) for name in ("kernel", "initramfs", "rootfs")}


def test_files_of_ones_own_need_no_packages(store: Store, source, own) -> None:
    source.failure = AssertionError("looked up")
    image = build("mine", store=store, source=source, **own)
    assert (image.base, image.kernel_release, image.cmdline) == ("own", "5.10.9", "")
    assert Path(image.initramfs).read_bytes() == Path(own["initramfs"]).read_bytes()
    assert image.root_ext4 == f"{image.folder}/root.ext4"
    for path in own.values():
        os.unlink(path)
    assert ensure("mine", store=store, source=source) == image


def test_a_kernel_of_ones_own_gets_our_initramfs_without_modules(store: Store, source, own) -> None:
    image = build("mine", store=store, source=source, kernel=own["kernel"])
    assert image.kernel_release == "5.10.9"
    init = cpio.read(Path(image.initramfs).read_bytes())["/init"].data
    assert b"one.ko" not in init
    os.unlink(own["kernel"])
    again = rebuild("mine", store=store, source=source)
    assert again.digest == image.digest


def test_a_damaged_file_of_the_users_is_not_taken_for_a_new_one(store: Store, source, own) -> None:
    image = build("mine", store=store, source=source, kernel=own["kernel"])
    Path(image.kernel).write_bytes(b"damaged")
    with pytest.raises(Corrupt, match="give it again"):
        ensure("mine", store=store, source=source)


def test_a_full_disk_is_told_as_that_and_not_as_the_users_file(
    store: Store, source, own, monkeypatch
) -> None:
    def full(source: str, target: str) -> None:  # as shutil tells it, by the name of what it read
        raise OSError(errno.ENOSPC, "No space left on device", source, None, target)

    monkeypatch.setattr("agentd.image.own.shutil.copyfile", full)
    with pytest.raises(Unavailable, match="No space left on device") as caught:
        build("mine", store=store, source=source, **own)
    assert store.folder in caught.value.message and own["initramfs"] not in caught.value.message


def test_a_kernel_without_pvh_is_noted(store: Store, source, own, vmlinux) -> None:
    Path(own["kernel"]).write_bytes(vmlinux(pvh=False))
    image = build("mine", store=store, source=source, **own)
    assert image.notes == ("the kernel has no PVH entry: QEMU cannot start it",)


@pytest.mark.parametrize("name", ["kernel", "initramfs", "rootfs"])
def test_what_is_not_what_it_should_be_is_refused(name: str, store: Store, source, own) -> None:
    Path(own[name]).write_bytes(b"something else")
    with pytest.raises(InvalidInput):
        build("mine", store=store, source=source, **own)
    with pytest.raises(InvalidInput, match="is no plain file"):
        build("mine", store=store, source=source, **(own | {name: "/dev/null"}))
    assert store.ls() == []
