import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentd.audit.chain import Keep
from agentd.audit.errors import AuditBusy, AuditError, AuditLocked
from agentd.audit.log import AuditLog
from agentd.audit.read import records
from agentd.audit.verify import verify
from agentd.model import commit
from agentd.model.audit import Event, Kind, Position

START = Event(kind=Kind.START, principal="uid:1000", request="req-1", fields={"a": "b"})


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "audit")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond ``size``: the kernel refuses with EFBIG, after a short write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    had = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, had)


def newest(directory: str) -> Path:
    return max(Path(directory).glob("audit-*.jsonl"))


def test_what_is_appended_is_on_disk_and_chained(directory: str) -> None:
    log = AuditLog(directory)
    first = log.append(START)
    assert newest(directory).read_bytes().count(b"\n") == 2  # before anything is closed
    second = log.submit(START).result(120)
    log.close()
    opened, one, two = records(directory)
    assert opened.kind == "opened" and opened.seq == 1 and opened.fields["pid"] == os.getpid()
    assert one.position == first and two.position == second
    assert two.prev == first.hash and verify(directory, second).ok


def test_it_goes_on_where_it_ended(directory: str) -> None:
    for _ in range(3):
        log = AuditLog(directory)
        last = log.append(START)
        assert log.head == last
        log.close()
    assert last.seq == 6 and verify(directory, last).ok


def test_many_threads_share_commits_and_each_gets_its_own_place(directory: str) -> None:
    log = AuditLog(directory)
    places: list[list[Position]] = [[] for _ in range(16)]

    def work(mine: list[Position]) -> None:
        for number in range(20):
            mine.append(log.append(Event(kind=Kind.START, request=f"{id(mine)}-{number}")))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in places]
    for thread in threads:
        thread.start()
    futures = [log.submit(START) for _ in range(50)]
    for thread in threads:
        thread.join()
    seqs = {future.result(120).seq for future in futures}
    counts = log.counts
    log.close()
    by_seq = {record.seq: record.request for record in records(directory)}
    for mine in places:
        assert [by_seq[place.seq] for place in mine] == [f"{id(mine)}-{n}" for n in range(20)]
        seqs |= {place.seq for place in mine}
    assert len(seqs) == 370 and counts.records == 371 > counts.commits
    assert verify(directory).ok


def test_submitted_events_are_written_before_it_closes(directory: str) -> None:
    log = AuditLog(directory)
    futures = [log.submit(START) for _ in range(1000)]
    log.close()
    assert [future.result(0).seq for future in futures] == list(range(2, 1002))
    with pytest.raises(AuditError, match="closed"):
        log.append(START)
    log.close()


def test_what_is_lazy_goes_along_with_what_is_waited_for(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.audit.log.LAZY_SECONDS", 60.0)
    log = AuditLog(directory)
    before = log.counts.commits
    lazy = [log.submit(START, lazily=True) for _ in range(3)]
    waited: list[Position] = []
    thread = threading.Thread(target=lambda: waited.append(log.append(START)))
    thread.start()
    thread.join()
    assert [future.result(0).seq for future in lazy] == [2, 3, 4] and waited[0].seq == 5
    assert log.counts.commits == before + 1
    late = log.submit(START, lazily=True)
    assert log.submit(START).result(120).seq == 7  # an urgent one does not leave it behind
    assert late.result(0).seq == 6
    last = log.submit(START, lazily=True)
    log.close()
    assert last.result(0).seq == 8


def test_who_waits_behind_more_than_a_batch_of_lazy_events_gets_its_own_place(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.audit.log.LAZY_SECONDS", 60.0)
    log = AuditLog(directory)
    lazy = [log.submit(START, lazily=True) for _ in range(commit.MAX_BATCH + 9)]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(log.append, START).result(120).seq == len(lazy) + 2
    assert [future.result(0).seq for future in lazy] == list(range(2, len(lazy) + 2))
    log.close()


def test_what_is_lazy_is_left_to_others_for_its_own_time(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.audit.log.LAZY_SECONDS", 0.1)
    log = AuditLog(directory)
    first = log.submit(START, lazily=True)  # the thread will look in a tenth of a second
    log.submit(START).result(120)
    assert first.done
    monkeypatch.setattr("agentd.audit.log.LAZY_SECONDS", 60.0)
    log.submit(START, lazily=True)
    looked = log.submit(START, lazily=True)
    time.sleep(0.3)
    assert not looked.done
    log.close()
    assert looked.done


def test_what_is_lazy_is_written_though_nothing_follows(directory: str) -> None:
    log = AuditLog(directory)
    for seq in range(2, 8):
        assert log.submit(START, lazily=True).result(120).seq == seq
    log.close()


def test_a_second_writer_is_refused_and_told_who_is_the_first(directory: str) -> None:
    log = AuditLog(directory)
    try:
        with pytest.raises(AuditLocked, match=f"in use by process {os.getpid()}"):
            AuditLog(directory)
    finally:
        log.close()
    AuditLog(directory).close()


def test_files_are_rotated_closed_for_writing_and_chained(directory: str) -> None:
    log = AuditLog(directory, keep=Keep(file_bytes=2000))
    for _ in range(30):
        log.append(START)
    log.close()
    files = sorted(Path(directory).glob("audit-*.jsonl"))
    assert len(files) > 3 and all(file.stat().st_size <= 2000 for file in files)
    assert {file.stat().st_mode & 0o777 for file in files[:-1]} == {0o400}
    assert verify(directory).records == 31 and verify(directory).ok


def test_old_files_are_retired_and_a_record_says_so(directory: str) -> None:
    log = AuditLog(directory, keep=Keep(file_bytes=2000, files=3))
    for _ in range(60):
        log.append(START)
    log.close()
    files = sorted(Path(directory).glob("audit-*.jsonl"))
    verdict = verify(directory)
    assert len(files) == 3 and verdict.ok and verdict.retired == int(files[0].stem[6:]) - 1 > 0
    files[0].unlink()  # by nobody that says so
    assert [problem.kind for problem in verify(directory).problems] == ["removed"]


def test_files_are_retired_by_age(directory: str) -> None:
    # All that is there is old by this clock.
    log = AuditLog(directory, keep=Keep(file_bytes=2000, seconds=3600), clock=lambda: 4e9)
    for _ in range(30):
        log.append(START)
    log.close()
    assert len(list(Path(directory).glob("audit-*.jsonl"))) == 1
    assert verify(directory).ok and verify(directory).retired > 0


def test_a_full_disk_is_an_error_counted_and_recorded_when_it_works_again(directory: str) -> None:
    log = AuditLog(directory)
    place = log.append(START)
    with full_disk(newest(directory).stat().st_size + 50):
        for _ in range(3):
            with pytest.raises(AuditError, match=r"cannot be written: File too large \(free"):
                log.append(START)
        with pytest.raises(AuditError, match="File too large"):
            log.submit(START).result(120)
        assert verify(directory, place).ok  # the half line is gone again
    assert log.counts.lost == 4 and log.counts.failures == 4
    log.append(START)
    log.close()
    loss = next(record for record in records(directory) if record.kind == "loss")
    assert loss.seq == place.seq + 1
    assert loss.fields["lost"] == 4 and loss.fields["reasons"] == ["File too large: 4"]
    assert verify(directory).ok and verify(directory).records == 4


def test_a_loss_that_no_event_follows_is_recorded_at_the_end(directory: str) -> None:
    log = AuditLog(directory)
    with full_disk(newest(directory).stat().st_size), pytest.raises(AuditError):
        log.append(START)
    log.close()
    assert [record.kind for record in records(directory)] == ["opened", "loss"]


def test_a_new_file_that_the_disk_has_no_room_for_is_begun_later(directory: str) -> None:
    log = AuditLog(directory, keep=Keep(file_bytes=400))
    log.append(START)
    with full_disk(10), pytest.raises(AuditError):
        log.append(START)
    log.append(START)
    log.close()
    assert verify(directory).ok and verify(directory).records == 4


def test_too_many_waiting_events_are_refused_and_counted(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(directory)
    monkeypatch.setattr(commit, "MAX_WAITING", 2)
    gate = threading.Event()
    real = log._chain.write
    monkeypatch.setattr(log._chain, "write", lambda *a, **o: (gate.wait(120), real(*a, **o))[1])
    futures = [log.submit(START)]
    while log._commits._queue:  # the thread has taken the first, and waits for the disk
        gate.wait(0.001)
    futures += [log.submit(START), log.submit(START)]
    with pytest.raises(AuditBusy, match="wait for the audit log"):
        log.submit(START)
    gate.set()
    assert [future.result(120).seq for future in futures] == [2, 4, 5]  # 3 is of the loss
    log.close()
    loss = next(record for record in records(directory) if record.kind == "loss")
    assert loss.fields["reasons"] == ["too many events waited: 1"]


def test_an_error_that_nobody_expected_leaves_nobody_waiting(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(directory)
    real = log._chain.write

    def broken(bodies: list[bytes], **options: bool) -> None:
        monkeypatch.setattr(log._chain, "write", real)
        real(bodies, **options)  # on disk, and nobody hears of it
        raise MemoryError

    monkeypatch.setattr(log._chain, "write", broken)
    with pytest.raises(AuditError, match="MemoryError"):
        log.append(START)
    assert log.append(START).seq == 4  # behind that one and the record of the loss
    log.close()
    assert verify(directory).ok


INTERRUPTED = """
import signal, sys, threading
from agentd.audit.log import AuditLog
from agentd.model import commit
from agentd.model.audit import Event, Kind

START = Event(kind=Kind.START)
log = AuditLog(sys.argv[1])
signal.signal(signal.SIGALRM, signal.default_int_handler)
done = interrupted = 0
stop = threading.Event()

def others():
    while not stop.is_set():
        log.append(START)

threads = [threading.Thread(target=others) for _ in range(3)]
for thread in threads:
    thread.start()
try:
    for number in range(500):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0002 + number % 50 * 0.00005)
            while True:
                log.append(START)
                done += 1
        except KeyboardInterrupt:
            interrupted += 1
finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    stop.set()
for thread in threads:
    thread.join()
log.append(START)
log.close()
print(done, interrupted)
"""


def test_an_interrupt_at_any_step_leaves_the_log_usable(directory: str) -> None:
    """A signal's handler raises somewhere within append, as Ctrl-C does.

    In a process of its own: coverage's locks and pytest's would stay locked as well."""
    command = [sys.executable, "-c", INTERRUPTED, directory]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert not ended.stderr
    done, interrupted = map(int, ended.stdout.split())
    assert interrupted == 500 and verify(directory).ok and verify(directory).records > done


def test_a_torn_end_is_moved_aside_and_recorded(directory: str) -> None:
    log = AuditLog(directory)
    place = log.append(START)
    log.close()
    file = newest(directory)
    with file.open("ab") as out:
        out.write(b'{"seq":3,"prev":"torn')
    assert verify(directory).problems[0].kind == "truncated"
    log = AuditLog(directory)
    log.close()
    cut = list(records(directory))[2]
    assert cut.kind == "cut" and cut.fields["bytes"] == 21 and cut.fields["file"] == file.name
    side = Path(directory, cut.fields["moved_to"])
    assert side.read_bytes() == b'{"seq":3,"prev":"torn'
    assert verify(directory, place).ok


def test_a_secret_is_hidden_by_its_name_however_deep_it_lies(directory: str) -> None:
    fields: dict[str, object] = {"password": "hunter2", "of": ["alice"]}
    for _ in range(6):
        fields = {"more": fields, "list": [fields]}
    log = AuditLog(directory)
    log.append(Event(kind=Kind.START, fields=fields))
    log.close()
    assert b"hunter2" not in newest(directory).read_bytes()


@pytest.mark.parametrize("room", [5, 100], ids=["not aside", "aside, and no record"])
def test_what_a_full_disk_left_of_a_cut_is_told_once_there_is_room(
    directory: str, room: int
) -> None:
    log = AuditLog(directory)
    place = log.append(START)
    log.close()
    with newest(directory).open("ab") as out:
        out.write(b'{"seq":3,"prev":"torn')
    for _ in range(3):
        with full_disk(room), pytest.raises(AuditError):
            AuditLog(directory)
    AuditLog(directory).close()
    cut, opened = list(records(directory))[2:]
    assert (cut.kind, cut.fields["bytes"], opened.kind) == ("cut", 21, "opened")
    (side,) = Path(directory).glob("*.torn-*")
    assert side.name == cut.fields["moved_to"] and verify(directory, place).ok
    AuditLog(directory).close()
    assert [record.kind for record in records(directory)].count("cut") == 1


def test_a_file_with_no_whole_record_follows_on_the_one_before(directory: str) -> None:
    log = AuditLog(directory, keep=Keep(file_bytes=300))
    for _ in range(3):
        log.append(START)
    log.close()
    # As a loss of power leaves what was about to be written.
    Path(directory, f"audit-{5:020}.jsonl").write_bytes(b"\0" * 5000)
    log = AuditLog(directory)
    log.append(START)
    log.close()
    assert verify(directory).ok


def test_a_log_without_what_is_before_it_is_not_gone_on_with(directory: str) -> None:
    log = AuditLog(directory, keep=Keep(file_bytes=300))
    for _ in range(3):
        log.append(START)
    log.close()
    old, *_, last = sorted(Path(directory).glob("audit-*.jsonl"))
    last.chmod(0o600)
    last.write_bytes(b"")
    for file in sorted(Path(directory).glob("audit-*.jsonl"))[1:-1]:
        file.unlink()
    with pytest.raises(AuditError, match="does not follow"):
        AuditLog(directory)
    assert old.exists()


def test_nobody_else_reads_it(directory: str) -> None:
    AuditLog(directory).close()
    assert os.stat(directory).st_mode & 0o777 == 0o700
    assert {os.stat(path).st_mode & 0o777 for path in Path(directory).iterdir()} == {0o600}
