import asyncio
import hashlib
import os
import tempfile
import threading
import zlib
from contextlib import ExitStack
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.model.errors import InvalidInput, Refused
from agentd.sandbox.journal import codec, journal
from agentd.sandbox.journal.events import LIMIT, STREAMS, End, Gap, JournalChunk
from agentd.sandbox.journal.journal import Journal
from agentd.sandbox.journal.reader import JournalReader
from agentd.sandbox.journal.stores import MIN_BYTES

PIECES = st.lists(
    st.tuples(
        st.sampled_from(STREAMS),
        st.integers(1, 40_000),
        st.booleans(),  # whether it compresses
        st.sampled_from(["", "flush", "reopen"]),
    ),
    min_size=1,
    max_size=12,
)


@pytest.fixture
def made(tmp_path):
    journals = []

    def make(**options):
        found = Journal(str(tmp_path / "prc-1"), **options)
        journals.append(found)
        return found

    yield make
    for one in journals:
        one.close()


def drain(follower):
    events = []
    while found := follower.read():
        events += found
    return events


def replay(source, cursor=None, **options):
    with source.follow(cursor, **options) as follower:
        return drain(follower)


def text(events, stream):
    return b"".join(e.data for e in events if isinstance(e, JournalChunk) and e.stream == stream)


def check_places(events, cursor=None):
    """Each event begins where the one before it in its stream ended."""
    at = dict.fromkeys(STREAMS, 0) | (cursor or {})
    for event in events:
        if isinstance(event, End):
            assert event is events[-1]
            continue
        assert event.offset == at[event.stream]
        at[event.stream] += len(event.data) if isinstance(event, JournalChunk) else event.length
    return at


def noise(size, seed=0):
    return hashlib.shake_128(b"%d" % seed).digest(size)


def piece(index, size, compresses):
    return (b"line %d\n" % index * (size // 7 + 1))[:size] if compresses else noise(size, index)


@settings(max_examples=40, deadline=None)
@given(PIECES, st.data())
def test_replay_from_any_byte_gives_exactly_the_rest(pieces, data):
    wrote = dict.fromkeys(STREAMS, b"")
    order = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        # What hypothesis breaks off must leave nothing open either.
        def opened():
            journal = Journal(f"{folder}/j", memory=20_000)
            stack.callback(journal.close)
            return journal, stack.enter_context(journal.follow())

        kept, early = opened()
        for index, (stream, size, compresses, then) in enumerate(pieces):
            block = piece(index, size, compresses)
            kept.append(stream, block)
            wrote[stream] += block
            order.append(stream)
            if then == "flush":
                kept.flush()
            elif then == "reopen":
                kept.close()
                kept, early = opened()
        kept.finish(b"info")
        cursor = {s: data.draw(st.integers(0, len(wrote[s]) + 2)) for s in STREAMS}
        streams = data.draw(st.sets(st.sampled_from(STREAMS), min_size=1))
        for source in (kept, "closed", "reopened"):
            if source == "closed":
                kept.close()
            elif source == "reopened":
                kept, _ = opened()
            events = replay(kept, cursor, streams=sorted(streams))
            assert events[-1] == End(b"info")
            assert not [e for e in events if isinstance(e, Gap)]
            for stream in STREAMS:
                expected = wrote[stream][cursor[stream] :] if stream in streams else b""
                assert text(events, stream) == expected
            check_places(events, {s: min(cursor[s], len(wrote[s])) for s in STREAMS})
        everything = drain(early)
        assert {s: text(everything, s) for s in STREAMS} == wrote
        # The order in which they came is kept, also between streams.
        seen = [e.stream for e in everything if isinstance(e, JournalChunk)]
        assert [s for s, _ in groupby(seen)] == [s for s, _ in groupby(order)]


def test_many_followers_each_at_its_own_pace_while_it_is_written(made):
    source = made(memory=50_000)
    blocks = [piece(i, 30_000, i % 2) for i in range(60)]
    whole = b"".join(blocks)
    results = {}

    def slow(number):
        with source.follow({"stdout": number * 1000}) as follower:
            got = bytearray()
            while not follower.ended:
                follower.wait(120)
                for event in follower.read(1 + number * 5000):
                    if isinstance(event, JournalChunk):
                        got += event.data
                    assert not isinstance(event, Gap)
            results[number] = bytes(got)

    threads = [threading.Thread(target=slow, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    over = threading.Event()

    def flush():
        while not over.is_set():
            source.flush()

    threads.append(threading.Thread(target=flush))
    threads[-1].start()
    for block in blocks:
        source.append("stdout", block)
    source.finish()
    over.set()
    for thread in threads:
        thread.join()
    source.flush()
    assert text(replay(source), "stdout") == whole
    assert results == {number: whole[number * 1000 :] for number in range(8)}


def test_what_leaves_memory_while_the_files_end_is_met_is_not_missed(made, monkeypatch):
    source = made(memory=10_000)
    more = [noise(200_000, 1)]
    source.append("stdout", noise(200_000, 0))
    source.append("stderr", noise(200_000))  # not wanted: the end of the files is met behind it
    with source.follow(streams=["stdout"]) as follower:
        read = follower._reader.next

        def next_and_then_more(*args):
            entry = read(*args)
            if entry is None and more:
                source.append("stdout", more.pop(0))
            return entry

        monkeypatch.setattr(follower._reader, "next", next_and_then_more)
        events = drain(follower)
    assert more == []
    assert not [e for e in events if isinstance(e, Gap)]
    assert text(events, "stdout") == noise(200_000, 0) + noise(200_000, 1)


def test_a_follower_is_notified_once_until_it_has_read_all(made):
    source, calls = made(), []
    with source.follow(notify=lambda: calls.append(1)) as follower:
        source.append("stdout", b"a")
        assert calls == []  # it has not looked yet
        assert follower.read() == [JournalChunk("stdout", 0, b"a")]
        assert follower.read() == []
        source.append("stdout", b"b")
        source.append("stderr", b"c")
        assert calls == [1]
        assert drain(follower) == [JournalChunk("stdout", 1, b"b"), JournalChunk("stderr", 0, b"c")]
        source.finish(b"x")
        assert calls == [1, 1]
        assert drain(follower) == [End(b"x")]
        assert follower.read() == []
    assert follower.cursor == {"stdout": 2, "stderr": 1, "pty": 0}


def test_a_follower_that_is_gone_or_fails_disturbs_nobody(made):
    source = made()

    def broken():
        raise RuntimeError("the loop is closed")

    with source.follow(notify=broken) as bad, source.follow() as good:
        assert (bad.read(), good.read()) == ([], [])
        source.append("stdout", b"a")
        assert good.wait(0)
        assert good.read() == [JournalChunk("stdout", 0, b"a")]
    bad.close()
    source.append("stdout", b"b")


def test_a_wait_ends_with_output_and_not_before(made):
    source = made()
    with source.follow() as follower:
        assert follower.wait(0)  # it has not looked yet: there may be something
        assert follower.read() == []
        assert not follower.wait(0.01)
        thread = threading.Timer(0.05, source.append, ("pty", b"x"))
        thread.start()
        assert follower.wait(120)
        thread.join()
        assert follower.read() == [JournalChunk("pty", 0, b"x")]


def test_followers_in_asyncio(made):
    source = made(memory=30_000)
    blocks = [piece(i, 20_000, True) for i in range(20)]

    async def one():
        """Woken from the thread that writes; idle, it holds none."""
        found, more = [], asyncio.Event()
        loop = asyncio.get_running_loop()
        with source.follow(notify=lambda: loop.call_soon_threadsafe(more.set)) as follower:
            while not follower.ended:
                more.clear()
                if events := follower.read(256 << 10):
                    found += events
                else:
                    await more.wait()
        return found

    async def main():
        tasks = [asyncio.ensure_future(one()) for _ in range(5)]
        await asyncio.sleep(0)

        def write():
            for block in blocks:
                source.append("stdout", block)
            source.finish(b"0")

        await asyncio.to_thread(write)
        return await asyncio.gather(*tasks)

    for events in asyncio.run(main()):
        assert text(events, "stdout") == b"".join(blocks)
        assert events[-1] == End(b"0")


def test_the_bound_drops_the_oldest_and_says_where_and_how_much(made, tmp_path):
    source = made(memory=10_000, max_bytes=MIN_BYTES)
    block = noise(100_000)
    count = 80
    with source.follow() as early:
        first = early.read(1)
        for _ in range(count):
            source.append("stdout", block)
        source.append("stderr", b"end")
        source.finish()
        source.flush()
        size = sum(f.stat().st_size for f in tmp_path.iterdir())
        assert size <= MIN_BYTES
        slow = drain(early)
    assert first == []
    for events in (slow, replay(source), replay(made())):
        check_places(events)
        gaps = [e for e in events if isinstance(e, Gap)]
        assert [(g.stream, g.offset, g.reason) for g in gaps] == [("stdout", 0, LIMIT)]
        kept = text(events, "stdout")
        assert len(kept) + gaps[0].length == count * len(block)
        assert len(kept) > MIN_BYTES // 2
        assert (block * count).endswith(kept)
        assert text(events, "stderr") == b"end"
    # From behind the gap there is none.
    assert not [e for e in replay(source, {"stdout": gaps[0].length}) if isinstance(e, Gap)]


def test_what_never_came_is_a_gap_with_its_reason_in_memory_and_in_the_file(made):
    source = made()
    source.append("stdout", b"abc")
    source.skip("stdout", 10, "dropped")
    source.append("stdout", b"def")
    source.finish(b"i")
    expected = [
        JournalChunk("stdout", 0, b"abc"),
        Gap("stdout", 3, 10, "dropped"),
        JournalChunk("stdout", 13, b"def"),
        End(b"i"),
    ]
    assert replay(source) == expected
    source.close()
    assert replay(source) == expected
    again = made()
    assert replay(again) == expected
    assert replay(again, {"stdout": 7})[0] == Gap("stdout", 7, 6, "dropped")
    assert again.offsets == {"stdout": 16, "stderr": 0, "pty": 0}


def test_it_goes_on_after_a_restart_from_where_the_file_ends(made):
    first = made()
    first.append("stdout", b"one ")
    first.append("stderr", b"err")
    first.close()
    second = made()
    assert second.offsets == {"stdout": 4, "stderr": 3, "pty": 0}
    with second.follow({"stdout": 2}) as follower:
        assert text(drain(follower), "stdout") == b"e "
        second.append("stdout", b"two")
        assert drain(follower) == [JournalChunk("stdout", 4, b"two")]
        second.finish(b"done")
        assert drain(follower) == [End(b"done")]
    second.close()
    third = made()
    assert text(replay(third), "stdout") == b"one two"
    with pytest.raises(InvalidInput, match="finished"):
        third.append("stdout", b"x")


def test_nothing_is_on_disk_without_output_and_little_in_memory_after_the_end(made, tmp_path):
    source = made()
    source.finish(b"x")
    source.close()
    assert list(tmp_path.iterdir()) == []
    assert replay(source) == [End(b"x")]
    other = Journal(str(tmp_path / "other"))
    other.append("stdout", noise(300_000))
    other.finish()
    other.close()
    assert (len(other.ring.entries), other.ring.size) == (0, 0)


def test_memory_is_bounded_by_size_and_by_number_of_pieces(made):
    source = made(memory=100_000)
    for i in range(20_000):
        source.append(STREAMS[i % 2], b"x")
        assert source.ring.size <= 100_000 + journal._BLOCK + 257 * 2 or source.ring.pending
        if i % 100 == 0:
            source.flush()
    source.flush()
    assert source.ring.size <= 100_000
    events = replay(source)
    assert len(text(events, "stdout")) == len(text(events, "stderr")) == 10_000


def test_a_piece_larger_than_a_record(made):
    source = made()
    large = noise(1_000_000)
    source.append("stdout", large)
    source.finish()
    assert text(replay(source), "stdout") == large
    source.close()
    assert text(replay(source, {"stdout": 700_001}), "stdout") == large[700_001:]


def test_a_cursor_ahead_waits_for_its_byte(made):
    source = made()
    source.append("stdout", b"abc")
    with source.follow({"stdout": 5}) as follower:
        assert follower.read() == []
        source.append("stdout", b"defg")
        assert drain(follower) == [JournalChunk("stdout", 5, b"fg")]


def test_bad_calls_are_refused(made, monkeypatch):
    source = made()
    with pytest.raises(KeyError):
        source.append("stdin", b"")
    for cursor in (-1, 1 << 62):
        with pytest.raises(InvalidInput, match="the cursor of stdout"):
            source.follow({"stdout": cursor})
    with pytest.raises(InvalidInput, match="over 65536 bytes"):
        source.finish(b"x" * 65537)
    monkeypatch.setattr(journal, "MAX_FOLLOWERS", 1)
    with source.follow(), pytest.raises(Refused, match="1 follow this output already"):
        source.follow()


@pytest.mark.parametrize("which", ["zstd", "zlib"])
def test_both_codecs_write_and_both_are_read(made, monkeypatch, which):
    if which == "zstd":
        pytest.importorskip("zstandard")
    else:
        monkeypatch.setattr(codec, "_zstd", None)
    source = made()
    block = b"hello " * 20_000
    source.append("stdout", block)
    source.finish()
    source.close()
    assert source.files.size < len(block) // 10
    monkeypatch.undo()
    assert text(replay(source), "stdout") == block


@pytest.mark.parametrize("which", [codec.RAW, codec.ZLIB, codec.ZSTD, 9])
def test_a_lying_record_never_becomes_more_than_it_says(which):
    bomb = b"\0" * 10_000_000
    packed = {codec.ZLIB: zlib.compress(bomb), codec.RAW: bomb}.get(which, b"junk")
    if which == codec.ZSTD:
        packed = pytest.importorskip("zstandard").compress(bomb)
    with pytest.raises(codec.CodecError):
        codec.decompress(which, packed, 1000)


def test_files_are_for_their_owner_alone(made, tmp_path):
    source = made()
    source.append("stdout", b"secret")
    source.flush()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL))


def test_whoever_makes_a_follower_passes_over_what_it_does_not_want(made, monkeypatch):
    """Whose ``read`` is an event loop's: a segment may have 200,000 records before that."""
    kept = made(memory=4096)
    for _ in range(5000):
        kept.append("stdout", b"a")
        kept.append("stderr", b"b")
    kept.flush()
    looked = []
    head = JournalReader._head
    with kept.follow({"stdout": 4000}, streams=("stdout",)) as follower:
        monkeypatch.setattr(JournalReader, "_head", lambda one: looked.append(one) or head(one))
        assert follower.read(1) == [JournalChunk("stdout", 4000, b"a")]
        assert len(looked) == 1
