"""Disks that are full, files that are torn or damaged, daemons that are killed."""

import errno
import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.sandbox.journal import record
from agentd.sandbox.journal.events import (
    CORRUPT,
    CRASH,
    DISK_ERROR,
    DISK_FULL,
    End,
    Gap,
    JournalChunk,
)
from agentd.sandbox.journal.journal import Journal

# Says how far it is after each flush, and is killed at some time.
WRITER = """
import sys
from agentd.sandbox.journal.journal import Journal
journal = Journal(sys.argv[1])
for i in range(100_000):
    journal.append("stdout", b"%07d\\n" % i)
    if i % 10 == 9:
        journal.flush()
        print(i + 1, flush=True)
"""


def noise(size, seed=0):
    return hashlib.shake_128(b"%d" % seed).digest(size)


def replay(source, cursor=None):
    events = []
    with source.follow(cursor) as follower:
        while found := follower.read():
            events += found
    return events


def text(events):
    return b"".join(e.data for e in events if isinstance(e, JournalChunk))


def gaps(events):
    return [e for e in events if isinstance(e, Gap)]


def write(path, blocks, finish=True):
    source = Journal(str(path))
    for block in blocks:
        source.append("stdout", block)
        source.flush()
    if finish:
        source.finish(b"end")
    source.close()


@pytest.fixture
def file_limit():
    """Limits the size of files, as a full disk does: a short write, then an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))

    yield limit
    limit(None)


def test_a_full_disk_costs_the_oldest_and_the_process_goes_on(tmp_path, file_limit):
    source = Journal(str(tmp_path / "j"), memory=300_000)
    blocks = [noise(50_000, i) for i in range(40)]
    whole = b"".join(blocks)
    file_limit(400_000)
    for block in blocks:
        source.append("stdout", block)
    assert not source.flush()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == source.files.size < 400_000  # nothing is left half written
    (lost,) = source.losses
    assert lost.reason == DISK_FULL
    assert 0 < lost.offset <= 400_000
    # What memory holds is there all the same.
    events = replay(source)
    assert gaps(events) == [lost]
    assert text(events) == whole[: lost.offset] + whole[lost.offset + lost.length :]
    assert len(whole) - lost.offset - lost.length > 200_000
    # There is room again: the rest is written, and the loss is told there too.
    file_limit(None)
    source.append("stdout", b"more")
    source.finish(b"end")
    assert source.flush()
    assert source.losses == [lost]
    source.close()
    again = Journal(str(tmp_path / "j"))
    events = replay(again)
    assert gaps(events) == [lost]
    assert text(events) == whole[: lost.offset] + whole[lost.offset + lost.length :] + b"more"
    assert events[-1] == End(b"end")
    again.close()


@pytest.mark.parametrize("size", [0, 1, record.HEADER_SIZE, record.HEADER_SIZE + 5])
def test_a_disk_with_no_room_at_all(tmp_path, file_limit, size):
    source = Journal(str(tmp_path / "j"), memory=100_000)
    file_limit(size)
    for i in range(10):
        source.append("stdout", noise(50_000, i))
    source.append("stderr", b"x")
    source.finish(b"end")
    assert not source.flush()
    events = replay(source)
    assert [(g.offset, g.reason) for g in gaps(events)] == [(0, DISK_FULL)]
    assert len(text(events)) + gaps(events)[0].length == 500_001
    assert events[-1] == End(b"end")
    file_limit(None)
    source.close()
    again = Journal(str(tmp_path / "j"))
    assert replay(again) == events
    again.close()


def test_another_error_of_the_disk_has_another_name(tmp_path, monkeypatch):
    source = Journal(str(tmp_path / "j"), memory=1000)

    def fail(*args):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(source.files, "write", fail)
    source.append("stdout", noise(200_000))
    source.append("stdout", noise(200_000))
    monkeypatch.undo()
    source.close()
    assert {g.reason for g in gaps(replay(source))} == {DISK_ERROR}


@pytest.mark.root
def test_a_real_full_disk(tmp_path):
    """On a tmpfs of 1 MiB, in a mount namespace that only the child sees."""
    script = (
        "import hashlib, sys\n"
        "from agentd.sandbox.journal.journal import Journal\n"
        "source = Journal(sys.argv[1] + '/j', memory=100_000)\n"
        "for i in range(60):\n"
        "    source.append('stdout', hashlib.shake_128(b'%d' % i).digest(50_000))\n"
        "source.flush()\n"
        "(lost,) = source.losses\n"
        "print(lost.offset, lost.length, lost.reason)\n"
        "with source.follow() as follower:\n"
        "    kept = 0\n"
        "    while events := follower.read():\n"
        "        kept += sum(len(e.data) for e in events if hasattr(e, 'data'))\n"
        "print(kept)\n"
    )
    mount = 'mount -t tmpfs -o size=1M none "$1" && exec "$2" -c "$3" "$1"'
    run = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, script],
        capture_output=True,
        text=True,
        check=True,
    )
    offset, length, reason, kept = run.stdout.split()
    assert reason == DISK_FULL
    assert 500_000 < int(offset) < 1 << 20
    assert int(kept) == 3_000_000 - int(length)


def test_a_torn_tail_is_found_wherever_it_was_torn_and_written_on_behind(tmp_path):
    blocks = [noise(300, 1), b"text " * 100, noise(50, 2)]
    write(tmp_path / "whole", blocks, finish=False)
    data = (tmp_path / "whole.000001").read_bytes()
    ends = []
    position = record.HEADER_SIZE
    for block in blocks:
        head = record.decode_head(data[position : position + record.HEAD_SIZE])
        position += record.HEAD_SIZE + head.stored
        ends.append((position, len(block)))
    for cut in range(0, len(data) + 1, 7):
        path = tmp_path / f"cut{cut}"
        Path(f"{path}.000001").write_bytes(data[:cut])
        source = Journal(str(path))
        whole = sum(size for end, size in ends if end <= cut)
        assert source.offsets["stdout"] == whole
        assert text(replay(source)) == b"".join(blocks)[:whole]
        source.append("stdout", b"more")
        source.finish()
        source.close()
        again = Journal(str(path))
        assert replay(again) == [*replay(source)]
        assert text(replay(again)) == b"".join(blocks)[:whole] + b"more"
        assert gaps(replay(again)) == []
        again.close()


def test_what_a_restart_could_not_get_back_is_a_gap(tmp_path):
    write(tmp_path / "j", [b"abc"], finish=False)
    source = Journal(str(tmp_path / "j"))
    source.skip("stdout", 4, CRASH)
    source.append("stdout", b"hij")
    source.close()
    assert replay(source) == [
        JournalChunk("stdout", 0, b"abc"),
        Gap("stdout", 3, 4, CRASH),
        JournalChunk("stdout", 7, b"hij"),
    ]


def test_a_flipped_bit_anywhere_is_a_gap_or_harmless_and_never_wrong_bytes(tmp_path):
    blocks = [noise(300, 1), b"text " * 100, noise(200, 2)]
    whole = b"".join(blocks)
    write(tmp_path / "j", blocks)
    path = tmp_path / "j.000001"
    data = path.read_bytes()
    for place in range(0, len(data), 5):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        source = Journal(str(tmp_path / "j"))
        at = 0
        for event in replay(source):
            if isinstance(event, JournalChunk):
                assert event.offset == at
                assert event.data == whole[at : at + len(event.data)]
                at += len(event.data)
            elif isinstance(event, Gap):
                assert (event.offset, event.reason) == (at, CORRUPT)
                at += event.length
        source.close()


def test_damage_in_the_middle_costs_one_record_and_is_marked(tmp_path):
    blocks = [noise(1000, i) for i in range(3)]
    write(tmp_path / "j", blocks)
    path = tmp_path / "j.000001"
    data = bytearray(path.read_bytes())
    data[record.HEADER_SIZE + (record.HEAD_SIZE + 1000) + record.HEAD_SIZE + 500] ^= 1
    path.write_bytes(data)
    source = Journal(str(tmp_path / "j"))
    assert replay(source) == [
        JournalChunk("stdout", 0, blocks[0]),
        Gap("stdout", 1000, 1000, CORRUPT),
        JournalChunk("stdout", 2000, blocks[2]),
        End(b"end"),
    ]
    source.close()


def test_files_that_are_no_segments_are_not_read_nor_touched(tmp_path):
    write(tmp_path / "j", [b"abc"])
    for name in ("j.000002", "j.txt", "jj.000001", "j.00001"):
        (tmp_path / name).write_bytes(b"junk" * 100)
    os.symlink("/etc/passwd", tmp_path / "k.000001")
    source = Journal(str(tmp_path / "j"))
    assert text(replay(source)) == b"abc"
    source.close()
    with pytest.raises(OSError, match="symbolic links"):
        Journal(str(tmp_path / "k"))


def test_files_deleted_under_a_follower_are_a_gap(tmp_path):
    source = Journal(str(tmp_path / "j"))
    source.append("stdout", noise(200_000))
    source.finish(b"end")
    source.close()
    with source.follow() as follower:
        source.remove()
        assert follower.read() == [Gap("stdout", 0, 200_000, "limit"), End(b"end")]
    assert list(tmp_path.iterdir()) == []


def test_killed_at_any_moment_nothing_that_was_flushed_is_lost(tmp_path):
    for lines in (1, 3, 17):
        path = str(tmp_path / f"j{lines}")
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE
        ) as child:
            for _ in range(lines):
                flushed = int(child.stdout.readline())
            child.kill()
            flushed = int((child.stdout.read().splitlines() or [flushed])[-1])
        source = Journal(path)
        got = text(replay(source))
        assert len(got) >= flushed * 8
        assert got == b"".join(b"%07d\n" % i for i in range(len(got) // 8))
        assert source.offsets["stdout"] == len(got)
        source.close()
