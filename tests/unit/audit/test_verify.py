import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.audit.chain import Chain, Keep
from agentd.audit.errors import AuditError, NoLog
from agentd.audit.record import GENESIS, entry, seal
from agentd.audit.verify import verify
from agentd.model.audit import Event, Kind, Position


def written(directory: Path, count: int, keep: Keep | None = None) -> Position:
    chain = Chain(str(directory), keep)
    for number in range(count):
        event = Event(kind=Kind.START, request=f"req-{number}", fields={"n": number})
        last = chain.write([entry(event, number).body]).positions[0]
    head = chain.head
    chain.close()
    return head or last


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("audit-*.jsonl"))


def lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def store(file: Path, lines_: list[bytes]) -> None:
    file.chmod(0o600)
    file.write_bytes(b"".join(lines_))


@pytest.fixture(scope="module")
def whole() -> Iterator[tuple[Path, Position]]:
    """Three files or so, which a test copies before it changes them."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder), written(Path(folder), 12, Keep(file_bytes=1200))


@pytest.fixture
def log(whole: tuple[Path, Position], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole[0], tmp_path / "log"))


def test_a_whole_log_is_well(whole: tuple[Path, Position]) -> None:
    directory, head = whole
    verdict = verify(str(directory), head)
    assert verdict.ok and verdict.records == 12 and verdict.head == head
    assert verdict.files == len(files(directory)) > 2


def test_what_is_no_log_is_not_well(tmp_path: Path) -> None:
    with pytest.raises(NoLog, match="no audit log here"):
        verify(str(tmp_path))
    (tmp_path / f"audit-{1:020}.jsonl").touch()
    with pytest.raises(NoLog, match="no audit log here"):
        verify(str(tmp_path))
    with pytest.raises(NoLog, match="--dir"):
        verify(str(tmp_path / "none"))


def test_a_fifo_in_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"audit-{1:020}.jsonl")
    with pytest.raises(AuditError, match="no regular file"):
        verify(str(tmp_path))


def test_a_changed_record_is_named(log: Path) -> None:
    file = files(log)[1]
    had = lines(file)
    store(file, [had[0], had[1].replace(b"req-", b"rex-"), *had[2:]])
    (problem,) = verify(str(log)).problems
    first = int(file.stem[6:])
    assert (problem.file, problem.line, problem.seq) == (file.name, 2, first + 1)
    assert problem.kind == "changed"


def test_a_record_with_a_new_hash_breaks_the_next_one(log: Path) -> None:
    file = files(log)[0]
    had = lines(file)
    body = had[0].replace(b"req-", b"rex-").partition(b',"prev":"%b",' % GENESIS)[2]
    forged, _ = seal(1, GENESIS, body.partition(b',"hash":')[0])
    store(file, [forged, *had[1:]])
    (problem,) = verify(str(log)).problems
    assert (problem.line, problem.seq, problem.kind) == (2, 2, "changed")


def test_a_removed_record_is_named(log: Path) -> None:
    file = files(log)[0]
    had = lines(file)
    store(file, [had[0], *had[2:]])
    (problem,) = verify(str(log)).problems
    assert (problem.line, problem.seq, problem.kind) == (2, 3, "removed")


def test_a_repeated_record_is_named(log: Path) -> None:
    file = files(log)[0]
    had = lines(file)
    store(file, [had[0], had[0], *had[1:]])
    (problem,) = verify(str(log)).problems
    assert (problem.line, problem.seq, problem.kind) == (2, 1, "duplicated")


def test_exchanged_records_are_named(log: Path) -> None:
    file = files(log)[0]
    had = lines(file)
    store(file, [had[1], had[0], *had[2:]])
    assert "reordered" in [problem.kind for problem in verify(str(log)).problems]


def test_a_missing_file_is_named(log: Path) -> None:
    files(log)[1].unlink()
    (problem,) = verify(str(log)).problems
    assert problem.file == files(log)[1].name and problem.kind == "removed"


def test_the_first_file_cannot_be_taken_away(log: Path) -> None:
    files(log)[0].unlink()
    assert [problem.kind for problem in verify(str(log)).problems] == ["removed"]


def test_a_cut_off_end_shows_with_a_head_alone(log: Path, whole: tuple[Path, Position]) -> None:
    last = files(log)[-1]
    store(last, lines(last)[:-1])
    assert verify(str(log)).ok  # nothing in it can say what is not in it any more
    (problem,) = verify(str(log), whole[1]).problems
    assert (problem.seq, problem.kind) == (12, "truncated")


def test_a_log_that_was_written_anew_shows_with_a_head(
    tmp_path: Path, whole: tuple[Path, Position]
) -> None:
    written(tmp_path, 11)
    chain = Chain(str(tmp_path))
    chain.load()
    chain.write([entry(Event(kind=Kind.END), 1).body])
    chain.close()
    assert verify(str(tmp_path)).ok
    assert [problem.kind for problem in verify(str(tmp_path), whole[1]).problems] == ["changed"]


def test_a_head_that_was_retired_cannot_be_compared(tmp_path: Path) -> None:
    written(tmp_path, 30, Keep(file_bytes=1200, files=2))
    assert verify(str(tmp_path)).ok
    (problem,) = verify(str(tmp_path), Position(2, "0" * 64)).problems
    assert problem.kind == "unknown_head"


def test_what_was_retired_may_still_be_there_and_no_more_may_go(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    written(kept, 12, Keep(file_bytes=1200))
    old = {file.name: file.read_bytes() for file in files(kept)}
    chain = Chain(str(kept), Keep(file_bytes=1200, files=2))
    chain.load()
    for number in range(4):
        chain.write([entry(Event(kind=Kind.START, fields={"n": number}), 1).body])
    chain.close()
    name = max(name for name in old if name < files(kept)[0].name)
    (kept / name).write_bytes(old[name])  # the writer died before it deleted this one
    assert verify(str(kept)).ok
    (kept / name).unlink()
    assert verify(str(kept)).ok
    first = files(kept)[0]
    store(first, lines(first)[1:])
    assert not verify(str(kept)).ok


def test_an_endless_line_is_a_problem_and_not_all_memory(log: Path) -> None:
    last = files(log)[-1]
    store(last, [*lines(last), b"x" * 3_000_000])
    assert not verify(str(log)).ok


# --- any mutation ---


def _change(data: st.DataObject, log: Path) -> bool:
    """One mutation of one file; whether it changed anything."""
    file = data.draw(st.sampled_from(files(log)))
    had = lines(file)
    at = data.draw(st.integers(0, len(had) - 1))
    other = data.draw(st.integers(0, len(had)))
    raw = bytearray(b"".join(had))
    spot = data.draw(st.integers(0, len(raw) - 1))
    match data.draw(
        st.sampled_from(["byte", "remove", "repeat", "move", "cut", "insert", "unlink", "rename"])
    ):
        case "byte":
            raw[spot] ^= data.draw(st.integers(1, 255))
            new = bytes(raw)
        case "remove":
            new = b"".join(had[:at] + had[at + 1 :])
        case "repeat":
            new = b"".join([*had[:other], had[at], *had[other:]])
        case "move":
            rest = had[:at] + had[at + 1 :]
            new = b"".join([*rest[:other], had[at], *rest[other:]])
        case "cut":
            new = bytes(raw[:spot])
        case "insert":
            new = bytes(raw[:spot] + data.draw(st.binary(min_size=1, max_size=20)) + raw[spot:])
        case "unlink":
            file.unlink()
            return True
        case _:
            number = data.draw(st.integers(0, 20))
            target = file.with_name(f"audit-{number:020}.jsonl")
            if target.exists():
                return False
            file.rename(target)
            return True
    if new == bytes(b"".join(had)):
        return False
    store(file, [new])
    return True


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_single_mutation_is_found(data: st.DataObject, whole: tuple[Path, Position]) -> None:
    directory, head = whole
    with tempfile.TemporaryDirectory() as folder:
        log = Path(shutil.copytree(directory, Path(folder) / "log"))
        if _change(data, log):
            assert not verify(str(log), head).ok
