import hashlib
import threading
import time

import pytest

from agentd.model.errors import InvalidInput
from agentd.sandbox.journal.events import End, JournalChunk
from agentd.sandbox.journal.journals import Journals


@pytest.fixture
def journals(tmp_path):
    made = Journals(str(tmp_path / "journals"))
    yield made
    made.close()


def until(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("it did not come")


def replay(source):
    events = []
    with source.follow() as follower:
        while found := follower.read():
            events += found
    return events


def files(journals):
    found = [path for files in journals._files().values() for _, _, path in files]
    return sorted(path.rpartition("/journals/")[2] for path in found)


def test_small_output_reaches_the_disk_by_itself_and_nothing_makes_no_file(journals):
    journals.create("sbx-1/prc-1").append("stdout", b"hi")
    journals.create("sbx-1/prc-2").finish(b"x")
    until(lambda: files(journals) == ["sbx-1/prc-1.000001"])


def test_an_open_one_is_shared_and_the_next_daemon_finds_what_there_was(journals):
    source = journals.create("sbx-1/prc-1")
    assert journals.open("sbx-1/prc-1") is source
    source.append("stdout", b"hi")
    source.finish(b"0")
    expected = [JournalChunk("stdout", 0, b"hi"), End(b"0")]
    assert replay(journals.open("sbx-1/prc-1")) == expected
    journals.close()
    again = Journals(journals.folder)
    assert replay(again.open("sbx-1/prc-1")) == expected
    assert again.open("sbx-1/prc-2").info is None
    again.close()


def test_removed_is_gone(journals):
    source = journals.create("sbx-1/prc-1")
    source.append("stdout", b"hi")
    source.finish()
    source.flush()
    journals.remove("sbx-1/prc-1")
    assert files(journals) == []
    assert journals.open("sbx-1/prc-1").offsets["stdout"] == 0


def test_removed_while_it_is_written_stays_gone_and_the_process_goes_on(journals):
    source = journals.create("sbx-1/prc-1")
    source.append("stdout", b"a" * 200_000)
    journals.remove("sbx-1/prc-1")
    for _ in range(20):
        source.append("stdout", b"b" * 200_000)
    source.finish()
    assert source.flush()
    assert files(journals) == []
    *_, gap, end = replay(source)
    assert (gap.offset + gap.length, end) == (21 * 200_000, End(b""))


def test_finished_ones_are_bounded_together_oldest_first_and_open_ones_stay(tmp_path):
    made = Journals(str(tmp_path / "journals"), total_bytes=100_000)
    for number in range(6):
        source = made.create(f"prc-{number}")
        source.append("stdout", hashlib.shake_128(b"%d" % number).digest(30_000))
        if number:
            source.finish()
        source.flush()
        until(lambda source=source: source.info is None or not source.ring.entries)
    until(lambda: set(made._open) == {"prc-0"})
    made.trim()
    assert files(made) == [f"prc-{number}.000001" for number in (0, 3, 4, 5)]
    made.close()


def test_a_refusing_disk_is_tried_again(journals, monkeypatch):
    source, tried = journals.create("prc-1"), threading.Event()
    write = source.files.write

    def refuse(*args):
        tried.set()
        raise OSError(28, "full")

    monkeypatch.setattr(source.files, "write", refuse)
    source.append("stdout", b"hi")
    source.finish()
    assert tried.wait(120)
    monkeypatch.setattr(source.files, "write", write)
    until(lambda: files(journals) == ["prc-1.000001"])


@pytest.mark.parametrize("name", ["", "../x", "a/b/c", "/a", "a/", "A", "a.b", "a\n"])
def test_a_name_that_leads_elsewhere_is_refused(journals, name):
    with pytest.raises(InvalidInput, match="no name for a journal"):
        journals.create(name)
