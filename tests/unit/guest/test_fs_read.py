import errno
import os

import pytest

from agentd.guest import wire
from agentd.guest.fs_read import CHUNK, OPERATIONS

READ = OPERATIONS["fs.read"]


def test_a_big_file_under_tiny_credit(new_channel, tmp_path):
    content = os.urandom(300_000)
    (tmp_path / "f").write_bytes(content)
    channel = new_channel(credit=1000).start(READ, path=str(tmp_path / "f")).run()
    assert channel.data == content
    assert channel.frames[-1] == (wire.DATA_EOF, b"")
    assert channel.last == {"event": "result", "size": 300_000}
    assert max(len(data) for _, data in channel.frames) <= 1000


def test_it_waits_without_credit_and_goes_on_with_it(new_channel, tmp_path):
    (tmp_path / "f").write_bytes(b"abcdef")
    channel = new_channel(credit=4, regrant=False).start(READ, path=str(tmp_path / "f"))
    assert (channel.data, channel.last) == (b"abcd", None)
    channel.give(10)
    assert (channel.data, channel.last["size"]) == (b"abcdef", 6)


def test_much_credit_goes_out_in_chunks(new_channel, tmp_path):
    (tmp_path / "f").write_bytes(bytes(3 << 20))
    channel = new_channel(credit=64 << 20).start(READ, path=str(tmp_path / "f"))
    assert channel.last is None  # the loop had its turn
    channel.run()
    assert len(channel.data) == 3 << 20
    assert max(len(data) for _, data in channel.frames) == CHUNK


@pytest.mark.parametrize(
    ("offset", "length", "want"),
    [(2, 3, b"234"), (8, 100, b"89"), (50, None, b""), (0, 0, b""), (7, None, b"789")],
)
def test_a_range(new_channel, tmp_path, offset, length, want):
    (tmp_path / "f").write_bytes(b"0123456789")
    request = {"path": str(tmp_path / "f"), "offset": offset, "length": length}
    channel = new_channel().start(READ, **request).run()
    assert (channel.data, channel.last["size"]) == (want, 10)


def test_a_proc_file_has_no_size_and_is_read_whole(new_channel):
    channel = new_channel(credit=100).start(READ, path="/proc/self/status").run()
    assert b"Threads:" in channel.data
    assert channel.last["size"] == len(channel.data)


def test_an_empty_file(new_channel, tmp_path):
    (tmp_path / "f").touch()
    channel = new_channel().start(READ, path=str(tmp_path / "f"))
    assert channel.frames == [(wire.DATA_EOF, b"")]
    assert channel.last == {"event": "result", "size": 0}


def test_special_files_are_refused_without_blocking(new_channel, tmp_path):
    os.mkfifo(tmp_path / "p")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "p", tmp_path / "zero"):
        last = new_channel().start(READ, path=str(path)).last
        assert last["errno"] == errno.EINVAL
        assert "cat" in last["message"]
    assert new_channel().start(READ, path=str(tmp_path)).last["errno"] == errno.EISDIR
    assert new_channel().start(READ, path=str(tmp_path / "no")).last["errno"] == errno.ENOENT


def test_a_link_to_the_agents_own_descriptor_is_not_followed(new_channel, tmp_path):
    (tmp_path / "secret").write_text("of the agent")
    fd = os.open(tmp_path / "secret", os.O_RDONLY)
    try:
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{fd}")
        last = new_channel().start(READ, path=str(tmp_path / "link")).last
        assert last["errno"] == errno.ELOOP
    finally:
        os.close(fd)


def test_cancelling_closes_the_file(new_channel, tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    before = os.listdir("/proc/self/fd")
    channel = new_channel(credit=1, regrant=False).start(READ, path=str(tmp_path / "f"))
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    channel.operation.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)
