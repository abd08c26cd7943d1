import os
import tempfile
import time
from pathlib import Path

import pytest

from agentd.image import store as store_module
from agentd.image.build import build
from agentd.image.model import Corrupt, Image, ImageError, NotFound
from agentd.image.store import Store
from agentd.model.errors import InvalidInput, SandboxError


@pytest.fixture
def image(store: Store, source) -> Image:
    return build(store=store, source=source)


def test_a_missing_image_names_the_fix(store: Store) -> None:
    with pytest.raises(NotFound, match=r"agentd image build --name other\)"):
        store.get("other")
    with pytest.raises(SandboxError, match=r"\(agentd image build\)"):
        store.get("default")
    assert store.ls() == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "UP", "a" * 65, "a\n"])
def test_names_cannot_leave_the_folder(name: str, store: Store) -> None:
    with pytest.raises(InvalidInput, match="is no name for an image"):
        store.get(name)


def test_paths_are_absolute_and_readable_by_another_user(image: Image, store: Store) -> None:
    for path in (image.kernel, image.initramfs):
        assert os.path.isabs(path)
        assert os.stat(path).st_mode & 0o777 == 0o644
    for folder in (store.folder, image.folder):
        assert os.stat(folder).st_mode & 0o777 == 0o755


def test_a_changed_file_is_found_when_it_is_next_got(image: Image, store: Store) -> None:
    Path(image.initramfs).write_bytes(b"\0" * os.path.getsize(image.initramfs))
    with pytest.raises(Corrupt, match=r"initramfs\.cpio is not what was built.*agentd image build"):
        store.get()


def test_setting_the_times_back_hides_nothing(image: Image, store: Store) -> None:
    before = os.stat(image.kernel)
    data = bytearray(Path(image.kernel).read_bytes())
    data[-1] ^= 1
    Path(image.kernel).write_bytes(data)
    os.utime(image.kernel, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Corrupt, match="vmlinux"):
        store.get()


def test_a_missing_or_replaced_file_is_found(image: Image, store: Store, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    os.rename(image.kernel, moved)
    with pytest.raises(Corrupt, match="vmlinux"):
        store.get()
    os.symlink(moved, image.kernel)
    with pytest.raises(Corrupt, match="vmlinux: not a plain file"):
        store.get()


def test_a_touched_file_is_hashed_once(
    image: Image, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    of_file = store_module.digest.of_file
    monkeypatch.setattr(
        store_module.digest, "of_file", lambda path: hashed.append(path) or of_file(path)
    )
    store.get()
    assert hashed == []
    os.utime(image.kernel)
    store.get()
    store.get()
    assert hashed == [image.kernel]
    store.get(full=True)
    assert {image.kernel, image.initramfs} <= set(hashed[1:]) | {image.kernel}
    assert len(hashed) > 2


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"vmlinux"', '"../../evil"'),
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"digest": "sha256:', '"digest": "sha256:0'),
        lambda text: text.replace('"base"', '"bass"'),
    ],
)
def test_a_manifest_that_was_changed_is_refused(image: Image, store: Store, change) -> None:
    path = Path(image.folder) / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(Corrupt, match="its manifest"):
        store.get()


def test_a_folder_that_others_may_change_is_refused(image: Image, store: Store) -> None:
    os.chmod(store.folder, 0o775)  # noqa: S103
    with pytest.raises(ImageError, match="others may change"):
        store.get()


@pytest.mark.root
def test_a_folder_of_another_user_is_refused(image: Image, store: Store) -> None:
    os.chown(store.folder, 4242, -1)
    with pytest.raises(ImageError, match="others may change"):
        store.get()


def test_removing_leaves_nothing_of_it(image: Image, store: Store) -> None:
    store.remove("default")
    assert store.ls() == []
    assert not os.path.exists(image.folder)
    with pytest.raises(NotFound):
        store.remove("default")


def test_a_replaced_image_stays_for_those_about_to_use_it(
    image: Image, store: Store, source
) -> None:
    source.content = {"/other": b"2"}
    second = build(store=store, source=source)
    assert second.digest != image.digest
    assert os.path.exists(image.kernel)
    source.content = {"/other": b"3"}
    third = build(store=store, source=source)
    assert os.path.exists(image.folder), "it was got within the hour"
    _some_time_ago(image, second)
    source.content = {"/other": b"4"}
    build(store=store, source=source)
    assert [os.path.exists(each.kernel) for each in (image, second, third)] == [False, False, True]


def test_replaced_images_that_were_got_lately_are_few(store: Store, source) -> None:
    made = []
    for number in range(7):
        source.content = {"/other": b"%d" % number}
        made.append(build(store=store, source=source))
    assert [os.path.exists(each.kernel) for each in made] == [False] * 2 + [True] * 5
    store.remove("default")
    assert os.listdir(store.inner(".builds")) == []


def test_an_image_that_is_got_counts_as_used(image: Image, store: Store, source) -> None:
    _some_time_ago(image)
    store.get()
    for number in range(3):
        source.content = {"/other": b"%d" % number}
        build(store=store, source=source)
    assert os.path.exists(image.kernel)


def _some_time_ago(*images: Image) -> None:
    then = time.time() - 2 * 3600
    for each in images:
        os.utime(each.folder, (then, then))


def test_a_folder_that_cannot_be_made_says_how_to_choose_another(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ImageError, match="XDG_CACHE_HOME"),
        Store(str(tmp_path / "file/x")).locked(),
    ):
        pass


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert store_module.default_folder() == "/somewhere/agentd/images"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says to ignore it
    assert os.path.isabs(store_module.default_folder())


def test_the_umask_does_not_shut_others_out(tmp_path: Path, source) -> None:
    before = os.umask(0o077)
    try:
        image = build(store=Store(str(tmp_path / "a" / "images")), source=source)
    finally:
        os.umask(before)
    for path in (tmp_path / "a", tmp_path / "a" / "images", image.folder):
        assert os.stat(path).st_mode & 0o777 == 0o755
    assert os.stat(image.initramfs).st_mode & 0o777 == 0o644


@pytest.mark.root
def test_a_store_that_is_only_readable_can_be_used_but_not_changed(source) -> None:
    # Not below pytest's own folder, which other users cannot enter.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)  # noqa: S103
        store = Store(f"{folder}/images")
        image = build(store=store, source=source)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setresuid(65534, 65534, 65534)
                assert store.get() == image
                with pytest.raises(ImageError, match="as their owner"), store.locked():
                    pass
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
