import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.audit.chain import Keep
from agentd.audit.errors import AuditError, AuditLocked
from agentd.audit.log import AuditLog
from agentd.audit.read import records
from agentd.audit.shared import SharedLog
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
    assert [process.wait(50) for process in processes] == [0] * 4
    found = [record.request for record in records(str(tmp_path)) if record.kind == "start"]
    assert sorted(found) == sorted(f"{i}-{n}" for i in range(4) for n in range(25))
    assert verify(str(tmp_path)).ok


def test_two_in_one_process_see_each_others_records(tmp_path: Path) -> None:
    one, two = SharedLog(str(tmp_path)), SharedLog(str(tmp_path), keep=Keep(file_bytes=100))
    seqs = [log.append(START).seq for log in (one, two, one, one, two, one)]
    one.close()
    two.close()
    assert seqs == [2, 3, 4, 5, 6, 7] and verify(str(tmp_path)).ok


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
