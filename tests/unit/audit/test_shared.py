import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.audit.chain import Keep
from agentd.audit.errors import AuditError, AuditLocked
from agentd.audit.log import AuditLog
from agentd.audit.read import records
from agentd.audit.receipts import find
from agentd.audit.shared import SharedLog, SharedReceipts
from agentd.audit.verify import verify
from agentd.model.audit import Event, Kind

START = Event(kind=Kind.START, principal="uid:1000")
PROCESS = """
import sys
from agentd.audit.chain import Keep
from agentd.audit.shared import SharedLog
from agentd.model.audit import Event, Kind
log = SharedLog(sys.argv[1], keep=Keep(file_bytes=2000), wait=30)
for number in range(25):
    log.append(Event(kind=Kind.START, request=f"{sys.argv[2]}-{number}"))
log.close()
"""


def test_processes_take_turns_in_one_chain(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", PROCESS, str(tmp_path)]
    processes = [subprocess.Popen([*argv, str(i)]) for i in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4
    found = [record.request for record in records(str(tmp_path)) if record.kind == "start"]
    assert sorted(found) == sorted(f"{i}-{n}" for i in range(4) for n in range(25))
    assert verify(str(tmp_path)).ok


def test_two_in_one_process_see_each_others_records(tmp_path: Path) -> None:
    one, two = SharedLog(str(tmp_path)), SharedLog(str(tmp_path), keep=Keep(file_bytes=100))
    seqs = [log.append(START).seq for log in (one, two, one, one, two, one)]
    one.close()
    two.close()
    assert seqs == [2, 3, 4, 5, 6, 7] and verify(str(tmp_path)).ok


def test_whoever_writes_next_has_the_lock_that_is_there(tmp_path: Path) -> None:
    one = SharedLog(str(tmp_path), wait=0.05)
    one.append(START)
    (tmp_path / "lock").unlink()
    daemon = AuditLog(str(tmp_path))
    with pytest.raises(AuditLocked, match=f"process {os.getpid()}"):
        one.append(START)
    daemon.close()
    one.append(START)
    one.close()
    assert verify(str(tmp_path)).ok


def test_a_daemon_that_has_the_log_is_waited_for_and_named(tmp_path: Path) -> None:
    daemon = AuditLog(str(tmp_path))
    log = SharedLog(str(tmp_path), wait=0.05)
    with pytest.raises(AuditLocked, match=f"process {os.getpid()}"):
        log.append(START)
    daemon.append(START)
    daemon.close()
    assert log.append(START).seq == 4
    log.close()
    assert [r.kind for r in records(str(tmp_path))] == ["opened", "start", "loss", "start"]


def test_what_another_has_left_torn_is_cut(tmp_path: Path) -> None:
    log = SharedLog(str(tmp_path))
    log.append(START)
    with next(tmp_path.glob("audit-*.jsonl")).open("ab") as file:
        file.write(b"{torn")
    log.append(START)
    log.close()
    assert [r.kind for r in records(str(tmp_path))] == ["opened", "start", "cut", "start"]
    assert verify(str(tmp_path)).ok


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuditError, match="cannot make"):
        SharedLog(str(tmp_path / "file" / "audit"))


PUTS = """
import sys
from agentd.audit.shared import SharedReceipts
receipts = SharedReceipts(sys.argv[1], max_bytes=80_000)
for number in range(50):
    receipts.put(f"req-{sys.argv[2]}-{number}", b"x" * 100)
receipts.close()
"""


class TestReceipts:
    def test_processes_write_to_one_segment_after_the_other(self, tmp_path: Path) -> None:
        argv = [sys.executable, "-c", PUTS, str(tmp_path)]
        processes = [subprocess.Popen([*argv, str(i)]) for i in range(4)]
        assert [process.wait(120) for process in processes] == [0] * 4
        assert len(list(tmp_path.glob("receipts-*.jsonl"))) > 1
        for id_ in (f"req-{i}-{n}" for i in range(4) for n in range(50)):
            assert find(str(tmp_path), id_) == b"x" * 100, id_

    def test_two_in_one_process_see_each_others(self, tmp_path: Path) -> None:
        one, two = (SharedReceipts(str(tmp_path), max_bytes=4000) for _ in range(2))
        for number in range(12):
            (one, two)[number % 2].put(f"req-{number}", b"%d" % number + b"x" * 200)
        for number in range(12):
            kept = b"%d" % number + b"x" * 200
            assert one.get(f"req-{number}") == two.get(f"req-{number}") == kept
        one.put("req-1", b"uno")
        assert find(str(tmp_path), "req-1") == b"uno"
        assert one.get("req-none") is None
        one.close()
        two.close()

    def test_what_another_has_left_torn_is_cut(self, tmp_path: Path) -> None:
        receipts = SharedReceipts(str(tmp_path))
        receipts.put("req-1", b"one")
        with next(tmp_path.glob("receipts-*.jsonl")).open("ab") as file:
            file.write(b"req-2 tor")
        receipts.put("req-3", b"three")
        assert [receipts.get(f"req-{n}") for n in (1, 2, 3)] == [b"one", None, b"three"]
        receipts.close()

    def test_to_open_them_cuts_nothing_that_is_being_written(self, tmp_path: Path) -> None:
        path = tmp_path / "receipts-000000000001.jsonl"
        path.write_bytes(b"req-1 half of a li")
        SharedReceipts(str(tmp_path)).close()
        assert path.read_bytes() == b"req-1 half of a li"

    def test_a_lock_that_is_not_let_go_of_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("agentd.audit.shared.WAIT_SECONDS", 0.05)
        one, two = SharedReceipts(str(tmp_path)), SharedReceipts(str(tmp_path))
        one._lock.acquire()
        with pytest.raises(AuditLocked):
            two.put("req-1", b"one")
        one._lock.release()
        two.put("req-1", b"one")
        one.close()
        two.close()

    def test_a_directory_that_goes_is_an_error_of_its_own(self, tmp_path: Path) -> None:
        folder = tmp_path / "receipts"
        receipts = SharedReceipts(str(folder))
        receipts.put("req-1", b"one")
        folder.rename(tmp_path / "gone")
        with pytest.raises(AuditError):
            receipts.put("req-2", b"two")
        receipts.close()
