"""States on disk: built once, verified, replaced when damaged, and never more than a few."""

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentd.model.errors import SandboxError
from agentd.sandbox.backends.vm.template import MAX_KEPT, Templates


class Builder:
    """Writes ``text``, and counts how often."""

    def __init__(self, text: bytes = b"state") -> None:
        self.text = text
        self.built = 0

    def __call__(self, fd: int) -> None:
        self.built += 1
        os.write(fd, self.text)


@pytest.fixture
def open_in(tmp_path: Path) -> Iterator[Callable[[], Templates]]:
    """As another process would open them."""
    made: list[Templates] = []

    def make() -> Templates:
        made.append(Templates(str(tmp_path / "templates")))
        return made[-1]

    yield make
    for templates in made:
        templates.close()


Open = Callable[[], Templates]


def _read(templates: Templates, key: str, builder: Builder) -> bytes:
    fd = templates.get(key, builder)
    try:
        return os.pread(fd, 1000, 0)
    finally:
        os.close(fd)


def _states(templates: Templates) -> list[Path]:
    return sorted(Path(templates.folder).glob("*.state"))


def test_built_once_for_every_process(open_in: Open) -> None:
    builder = Builder()
    first, second = open_in(), open_in()
    assert _read(first, "a", builder) == b"state"
    assert _read(second, "a", builder) == b"state"
    assert builder.built == 1


def test_each_key_has_its_own(open_in: Open) -> None:
    templates = open_in()
    one, two = Builder(b"one"), Builder(b"two")
    assert _read(templates, "1", one) == b"one"
    assert _read(templates, "2", two) == b"two"


def test_a_damaged_one_is_built_again(open_in: Open) -> None:
    builder = Builder()
    _read(open_in(), "a", builder)
    (path,) = _states(open_in())
    path.write_bytes(b"stale")
    assert _read(open_in(), "a", builder) == b"state"
    assert builder.built == 2


def test_one_that_was_cut_off_is_built_again(open_in: Open) -> None:
    builder = Builder(b"x" * 100)
    _read(open_in(), "a", builder)
    (path,) = _states(open_in())
    os.truncate(path, 50)
    assert len(_read(open_in(), "a", builder)) == 100


def test_a_forged_stamp_does_not_vouch_for_a_damaged_one(open_in: Open) -> None:
    builder = Builder()
    _read(open_in(), "a", builder)
    (path,) = _states(open_in())
    stamp = Path(f"{path}.stamp").read_bytes()
    path.write_bytes(b"stale")
    Path(f"{path}.stamp").write_bytes(stamp)
    _read(open_in(), "a", builder)
    assert builder.built == 2


def test_without_its_stamp_it_is_hashed_and_found_sound(open_in: Open) -> None:
    builder = Builder()
    _read(open_in(), "a", builder)
    (path,) = _states(open_in())
    os.unlink(f"{path}.stamp")
    _read(open_in(), "a", builder)
    assert builder.built == 1
    assert os.path.exists(f"{path}.stamp")


def test_a_build_that_fails_leaves_nothing(open_in: Open) -> None:
    templates = open_in()

    def fail(fd: int) -> None:
        os.write(fd, b"half")
        raise SandboxError("no boot")

    with pytest.raises(SandboxError, match="no boot"):
        templates.get("a", fail)
    assert os.listdir(templates.folder) == [".lock"]
    builder = Builder()
    _read(templates, "a", builder)
    assert builder.built == 1


def test_what_a_killed_builder_left_is_removed(open_in: Open) -> None:
    templates = open_in()
    _read(templates, "a", Builder())
    partial = Path(templates.folder) / "0123.partial"
    partial.write_bytes(b"half")
    _read(templates, "b", Builder())
    assert not partial.exists()


def test_only_the_latest_used_are_kept(open_in: Open) -> None:
    templates = open_in()
    for number in range(MAX_KEPT):
        _read(templates, str(number), Builder(b"%d" % number))
    for age, path in enumerate(_states(templates)):
        os.utime(f"{path}.stamp", (age, age))
    kept = Builder(b"0")
    _read(open_in(), "0", kept)  # used again: now the newest
    _read(open_in(), "new", Builder(b"new"))
    assert len(_states(templates)) == MAX_KEPT
    _read(open_in(), "0", kept)
    assert kept.built == 0
    assert len(list(Path(templates.folder).glob("*.stamp"))) == MAX_KEPT


def test_one_that_is_of_no_use_is_dropped(open_in: Open) -> None:
    templates = open_in()
    builder = Builder()
    _read(templates, "a", builder)
    templates.drop("a")
    assert _states(templates) == []
    _read(templates, "a", builder)
    assert builder.built == 2


def test_two_at_once_build_once(open_in: Open) -> None:
    builder = Builder()
    threads = [
        threading.Thread(target=_read, args=(templates, "a", builder))
        for templates in (open_in(), open_in(), open_in())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builder.built == 1


def test_nobody_else_can_read_a_guests_memory(open_in: Open) -> None:
    templates = open_in()
    _read(templates, "a", Builder())
    (path,) = _states(templates)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(os.stat(templates.folder).st_mode) == 0o700


def test_a_folder_that_others_can_write_is_refused(open_in: Open) -> None:
    templates = open_in()
    os.makedirs(templates.folder)
    os.chmod(templates.folder, 0o777)  # noqa: S103
    with pytest.raises(SandboxError, match="written by others") as caught:
        _read(templates, "a", Builder())
    assert "chmod 700" in caught.value.remediation
