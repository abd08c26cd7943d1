"""What was written and is gone is found, told and refused, until somebody accepts it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.audit import mending
from agentd.audit.chain import Keep
from agentd.audit.errors import AuditError, AuditLocked, LogDamaged, NoLog
from agentd.audit.log import AuditLog
from agentd.audit.read import records
from agentd.audit.shared import SharedLog
from agentd.audit.verify import verify
from agentd.model.audit import Event, Kind, Position

START = Event(kind=Kind.START, principal="uid:1000", fields={"pad": "x" * 200})


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "audit")


def written(directory: str, count: int = 12, keep: Keep | None = None) -> Position:
    log = AuditLog(directory, keep=keep or Keep(file_bytes=1200))
    for _ in range(count):
        last = log.append(START)
    log.close()
    return last


def files(directory: str) -> list[Path]:
    return sorted(Path(directory).glob("audit-*.jsonl"))


def newest_cut(directory: str) -> None:
    last = files(directory)[-1]
    last.write_bytes(b"".join(last.read_bytes().splitlines(keepends=True)[:-1]))


def newest_changed(directory: str) -> None:
    last = files(directory)[-1]
    data = last.read_bytes()
    last.write_bytes(data[:-10] + b"0123456" + data[-3:])


def all_files(directory: str) -> None:
    for file in files(directory):
        file.unlink()


def written_anew(directory: str) -> None:
    """As long, and whole in itself: only what is known beside it tells."""
    shutil.rmtree(directory)
    written(f"{directory}-other")
    os.rename(f"{directory}-other", directory)


DAMAGES: dict[str, Callable[[str], object]] = {
    "directory": shutil.rmtree,
    "files": all_files,
    "newest": lambda at: files(at)[-1].unlink(),
    "oldest": lambda at: files(at)[0].unlink(),
    "middle": lambda at: files(at)[1].unlink(),
    "emptied": lambda at: os.truncate(files(at)[-1], 0),
    "cut": newest_cut,
    "changed": newest_changed,
    "renamed": lambda at: files(at)[-1].rename(f"{files(at)[-1]}.1"),
    "moved": lambda at: os.rename(at, f"{at}.old"),
    "anew": written_anew,
}


@pytest.fixture(params=DAMAGES)
def damage(request: pytest.FixtureRequest) -> Callable[[str], object]:
    return DAMAGES[request.param]


@pytest.fixture(params=sorted(set(DAMAGES) - {"changed", "anew"}))
def taken(request: pytest.FixtureRequest) -> Callable[[str], object]:
    """What a look at the files' names and sizes can show."""
    return DAMAGES[request.param]


def test_it_is_found_when_the_log_is_opened(
    directory: str, damage: Callable[[str], object]
) -> None:
    head = written(directory)
    damage(directory)
    with pytest.raises(LogDamaged, match="accept-loss"):
        AuditLog(directory)
    shared = SharedLog(directory)
    with pytest.raises(LogDamaged, match="accept-loss"):
        shared.append(START)
    shared.close()
    accepted = mending.accept(directory)
    assert Kind.LOSS in [event.kind for event in accepted]
    assert mending.accept(directory) == []
    log = AuditLog(directory)
    assert log.append(START).seq > head.seq
    log.close()
    verdict = verify(directory)
    assert verdict.ok, verdict.problems
    assert "loss" in [note.kind for note in verdict.notes]
    assert [r.seq for r in records(directory)] == sorted(r.seq for r in records(directory))


def test_a_changed_last_line_is_found_without_the_mark_too(directory: str) -> None:
    """A line that is whole was not torn by a writer that died: it is not cut off in silence."""
    written(directory)
    os.unlink(f"{directory}.head")
    newest_changed(directory)
    before = files(directory)[-1].read_bytes()
    with pytest.raises(LogDamaged, match=r"was changed|accept-loss"):
        AuditLog(directory)
    assert files(directory)[-1].read_bytes() == before


def test_verify_finds_it_as_well(directory: str, damage: Callable[[str], object]) -> None:
    written(directory)
    damage(directory)
    try:
        assert not verify(directory).ok
    except NoLog as error:
        assert "no audit log here" in str(error)


def test_it_is_found_by_who_writes_the_log(directory: str, taken: Callable[[str], object]) -> None:
    written(directory)
    log = AuditLog(directory)
    log.append(START)
    taken(directory)
    for _ in range(2):
        with pytest.raises(LogDamaged):
            log.append(START)
        assert log.damage
    assert log.look()
    log.close()


def test_it_is_found_by_one_of_several_writers(
    directory: str, taken: Callable[[str], object]
) -> None:
    written(directory)
    log = SharedLog(directory)
    log.append(START)
    taken(directory)
    for _ in range(2):
        with pytest.raises(LogDamaged):
            log.append(START)
    log.close()


def test_what_is_put_back_is_gone_on_with(directory: str, tmp_path: Path) -> None:
    written(directory)
    log = AuditLog(directory)
    log.append(START)
    aside = tmp_path / "aside"
    os.rename(directory, aside)
    assert "is not as it was written" in log.look()
    with pytest.raises(AuditError):
        log.append(START)
    os.rename(aside, directory)
    assert log.look() == ""
    log.append(START)
    log.close()
    verdict = verify(directory)
    assert verdict.ok and [note.kind for note in verdict.notes] == ["loss"]


def test_a_look_finds_what_goes_while_nothing_is_written(directory: str) -> None:
    log = AuditLog(directory)
    assert log.look() == ""
    all_files(directory)
    assert "its last record is 0, and record 1 was written" in log.look()
    log.close()


def test_without_a_mark_the_receipts_know(directory: str, tmp_path: Path, key: object) -> None:
    from tests.unit.audit.executions import execution

    from agentd.audit import receipt
    from agentd.audit.receipts import ReceiptStore

    log = AuditLog(directory)
    receipts = ReceiptStore(str(tmp_path / "state" / "receipts"))
    facts = receipt.chain(log, execution())
    receipts.put(facts.execution.request, receipt.issue(facts, key))  # type: ignore[arg-type]
    receipts.close()
    log.close()
    assert verify(directory).receipts == 1
    (tmp_path / "state" / "audit.head").unlink()
    all_files(directory)
    with pytest.raises(LogDamaged, match="record 2 was written"):
        AuditLog(directory)
    with pytest.raises(NoLog, match="receipts beside it"):
        verify(directory)
    other = AuditLog(str(tmp_path / "other"))
    for _ in range(3):
        other.append(START)
    other.close()
    os.rename(files(str(tmp_path / "other"))[0], Path(directory, f"audit-{1:020}.jsonl"))
    assert [problem.kind for problem in verify(directory).problems] == ["receipt"]


def test_a_log_in_use_cannot_be_accepted(directory: str) -> None:
    log = AuditLog(directory)
    with pytest.raises(AuditLocked):
        mending.accept(directory)
    log.close()


def test_what_a_log_from_before_holds_is_taken_as_it_is(directory: str, tmp_path: Path) -> None:
    head = written(directory, keep=Keep(file_bytes=1200, files=2))
    (tmp_path / "state" / "audit.head").unlink()
    log = AuditLog(directory)
    log.close()
    assert verify(directory, head).ok
    assert (tmp_path / "state" / "audit.head").exists()
