import errno
import os

import pytest

from agentd.guest import watch

WATCH = watch.OPERATIONS["fs.watch"]


def seen(channel, kind, path):
    return {"event": "change", "kind": kind, "path": str(path)} in channel.events


def expect(channel, kind, path):
    channel.run(lambda: seen(channel, kind, path))


def test_each_kind(new_channel, tmp_path):
    channel = new_channel().start(WATCH, path=str(tmp_path))
    (tmp_path / "f").write_text("x")
    expect(channel, "create", tmp_path / "f")
    expect(channel, "modify", tmp_path / "f")
    (tmp_path / "f").rename(tmp_path / "g")
    expect(channel, "move", tmp_path / "f")
    expect(channel, "move", tmp_path / "g")
    (tmp_path / "g").unlink()
    expect(channel, "delete", tmp_path / "g")
    assert channel.last is None


def test_not_recursive_stays_in_its_directory(new_channel, tmp_path):
    (tmp_path / "d").mkdir()
    channel = new_channel().start(WATCH, path=str(tmp_path))
    (tmp_path / "d" / "inner").touch()
    (tmp_path / "outer").touch()
    expect(channel, "create", tmp_path / "outer")
    assert not seen(channel, "create", tmp_path / "d" / "inner")


def test_recursive_sees_old_new_and_moved_directories(new_channel, tmp_path):
    old = tmp_path / "old" / "deep"
    old.mkdir(parents=True)
    channel = new_channel().start(WATCH, path=str(tmp_path), recursive=True)
    (old / "a").touch()
    expect(channel, "create", old / "a")
    new = tmp_path / "new" / "x" / "y"
    new.mkdir(parents=True)
    (new / "made before the watch").touch()
    expect(channel, "create", new / "made before the watch")
    (new / "b").touch()
    expect(channel, "create", new / "b")
    (tmp_path / "new").rename(tmp_path / "old" / "moved")
    moved = tmp_path / "old" / "moved" / "x" / "y"
    expect(channel, "create", moved / "b")
    (moved / "c").touch()
    expect(channel, "create", moved / "c")
    assert not seen(channel, "create", new / "c")


def test_a_link_to_a_directory_is_not_entered(new_channel, tmp_path):
    (tmp_path / "outside").mkdir()
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    channel = new_channel().start(WATCH, path=str(root), recursive=True)
    (tmp_path / "outside" / "f").touch()
    (root / "end").touch()
    expect(channel, "create", root / "end")
    assert not [event for event in channel.events[1:] if event["path"].endswith("/f")]


def test_a_path_swapped_for_a_link_gets_no_watch(new_channel, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    channel = new_channel().start(WATCH, path=str(root), recursive=True)
    (tmp_path / "link").symlink_to("/etc")
    channel.operation._add(str(tmp_path / "link"), True)
    assert list(channel.operation._paths.values()) == [str(root)]
    assert channel.events == [{"event": "watching"}]


def test_a_directory_that_moved_out_is_no_longer_told_of(new_channel, tmp_path):
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    channel = new_channel().start(WATCH, path=str(root), recursive=True)
    (root / "d").rename(tmp_path / "out")
    expect(channel, "move", root / "d")
    (tmp_path / "out" / "f").touch()
    (root / "end").touch()
    expect(channel, "create", root / "end")
    assert not seen(channel, "create", root / "d" / "f")


def test_the_watched_file_itself_and_its_end(new_channel, tmp_path):
    (tmp_path / "f").touch()
    channel = new_channel().start(WATCH, path=str(tmp_path / "f"))
    with (tmp_path / "f").open("w") as file:
        file.write("x")
    expect(channel, "modify", tmp_path / "f")
    (tmp_path / "f").unlink()
    channel.run()
    assert seen(channel, "delete", tmp_path / "f")
    assert channel.last == {"event": "end"}


@pytest.mark.parametrize("is_open", [False, True])
def test_a_watched_file_that_another_takes_the_place_of_is_followed(new_channel, tmp_path, is_open):
    """As files.write and editors do it; and where a program has the old one open still."""
    path = tmp_path / "f"
    path.touch()
    held = path.open() if is_open else None
    channel = new_channel().start(WATCH, path=str(path))
    for content in ("a", "bc"):
        before = len(channel.events)
        (tmp_path / "new").write_text(content)
        (tmp_path / "new").rename(path)
        channel.run(lambda before=before: len(channel.events) > before)
        assert channel.events[before:] == [{"event": "change", "kind": "modify", "path": str(path)}]
    if held is not None:
        held.close()
    path.chmod(0o600)
    with path.open("a") as file:
        file.write("d")
    channel.run(lambda: len(channel.events) == 4)
    path.unlink()
    channel.run()
    kinds = [event.get("kind") for event in channel.events]
    assert kinds == [None, *["modify"] * 3, "delete", None]
    assert channel.last == {"event": "end"}


def test_too_many_directories_are_told_as_overflow(new_channel, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "MAX_WATCHES", 3)
    for name in "abcdef":
        (tmp_path / name).mkdir()
    channel = new_channel().start(WATCH, path=str(tmp_path), recursive=True)
    assert [event.get("kind") for event in channel.events] == [None, "overflow"]


def test_what_is_missed_as_it_begins_is_told_once_it_has_begun(new_channel, tmp_path, monkeypatch):
    """A folder that is closed to us, say: those behind it are still to be looked into then."""
    monkeypatch.setattr(watch, "SLICE", 2)
    monkeypatch.setattr(watch, "MAX_MISSED", 2)
    for name in "abcd":
        (tmp_path / name / "deep").mkdir(parents=True)
    add, closed = watch.Inotify.add, ["a", "b"]

    def refused(self, path, mask):
        if os.path.basename(path) in closed:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return add(self, path, mask)

    monkeypatch.setattr(watch.Inotify, "add", refused)
    for told in ([tmp_path / "a", tmp_path / "b"], [tmp_path]):
        channel = new_channel().start(WATCH, path=str(tmp_path), recursive=True)
        (tmp_path / "end").mkdir()
        expect(channel, "create", tmp_path / "end")
        (tmp_path / "end").rmdir()
        assert channel.events.pop(0) == {"event": "watching"}
        missed = [event for event in channel.events if event["kind"] == "overflow"]
        assert {event["path"] for event in missed} >= set(map(str, told))
        channel.operation.close()
        closed += "cd"


def test_while_the_buffer_is_full_nothing_is_read(new_channel, tmp_path):
    channel = new_channel(credit=0).start(WATCH, path=str(tmp_path), recursive=True)
    (tmp_path / "f").touch()
    channel.loop.after(0.01, channel.loop.stop)
    channel.loop.run()
    assert channel.events == []
    channel.give(1)
    expect(channel, "create", tmp_path / "f")


@pytest.mark.parametrize(("path", "number"), [("/no/such", errno.ENOENT), ("relative", 0)])
def test_refused(new_channel, path, number):
    before = len(os.listdir("/proc/self/fd"))
    assert new_channel().start(WATCH, path=path).last["errno"] == number
    assert len(os.listdir("/proc/self/fd")) == before
