import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.audit import read
from agentd.audit.chain import Chain, Keep
from agentd.audit.record import decode, entry
from agentd.model.audit import Event, Kind


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    made = Chain(str(tmp_path), Keep(file_bytes=1000))
    for _ in range(10):
        made.write([entry(Event(kind=Kind.START), 1).body])
    yield made
    made.close()


def seqs(lines: "Iterator[bytes] | list[bytes]") -> list[int]:
    return [decode(line).seq for line in lines]


def test_a_range_of_records_over_files(chain: Chain, tmp_path: Path) -> None:
    assert len(list(tmp_path.glob("audit-*"))) > 2
    assert seqs(read.lines(str(tmp_path))) == list(range(1, 11))
    assert seqs(read.lines(str(tmp_path), 3, 8)) == [3, 4, 5, 6, 7, 8]
    assert seqs(read.lines(str(tmp_path), 11)) == []


def test_the_last_ones(chain: Chain, tmp_path: Path) -> None:
    assert seqs(read.tail(str(tmp_path), 7)) == [4, 5, 6, 7, 8, 9, 10]
    assert seqs(read.tail(str(tmp_path), 100)) == list(range(1, 11))
    assert read.tail(str(tmp_path), 0) == []


def test_the_last_ones_are_read_from_the_end(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_CHUNK", 16)
    assert seqs(read.tail(str(tmp_path), 7)) == [4, 5, 6, 7, 8, 9, 10]


def test_following_goes_from_file_to_file(chain: Chain, tmp_path: Path) -> None:
    found = read.follow(str(tmp_path), 9)
    assert [decode(next(found)).seq for _ in range(2)] == [9, 10]

    def more() -> None:
        for _ in range(10):
            chain.write([entry(Event(kind=Kind.END), 1).body])

    thread = threading.Thread(target=more)
    thread.start()
    assert [decode(next(found)).seq for _ in range(10)] == list(range(11, 21))
    thread.join()


def test_following_begins_before_there_is_anything(tmp_path: Path) -> None:
    chain = Chain(str(tmp_path))
    timer = threading.Timer(0.05, lambda: chain.write([entry(Event(kind=Kind.END), 1).body]))
    timer.start()
    assert decode(next(read.follow(str(tmp_path), 1))).seq == 1
    timer.join()
    chain.close()


def test_a_half_written_line_is_not_read(chain: Chain, tmp_path: Path) -> None:
    with max(tmp_path.glob("audit-*")).open("ab") as file:
        file.write(b'{"half')
    assert seqs(read.tail(str(tmp_path), 1)) == [10]


def test_a_record_in_the_midst_of_a_long_file_is_found(tmp_path: Path) -> None:
    chain = Chain(str(tmp_path / "log"))
    (tmp_path / "log").mkdir()
    long = Event(kind=Kind.START, fields={"pad": "x" * 300})
    for _ in range(40):
        chain.write([entry(long, 1).body] * 100, synced=False)
    chain.close()
    all_ = list(read.lines(str(tmp_path / "log")))
    assert len(all_) == 4000 and sum(map(len, all_)) > 1 << 20
    for first in (1, 2, 1999, 2000, 3333, 3999, 4000):
        assert (
            list(read.lines(str(tmp_path / "log"), first, first + 1)) == all_[first - 1 : first + 1]
        )
    assert list(read.lines(str(tmp_path / "log"), 4001)) == []
