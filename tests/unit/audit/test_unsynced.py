"""What is written and not yet synced: our own death leaves it, and soon it is on disk."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.audit.chain import Keep
from agentd.audit.errors import AuditError
from agentd.audit.log import AuditLog
from agentd.audit.read import records
from agentd.audit.verify import verify
from agentd.model.audit import Event, Kind, Position

START = Event(kind=Kind.START, principal="uid:1000", request="req-1", fields={"a": "b"})
WAIT = 120.0


class Disk:
    """Counts what is synced, and refuses as often as it is told to."""

    def __init__(self) -> None:
        self.synced = 0
        self.refusals = 0
        self.refused = 0
        self._real = os.fdatasync

    def fdatasync(self, fd: int) -> None:
        if self.refusals:
            self.refusals -= 1
            self.refused += 1
            raise OSError(errno.EIO, "Input/output error")
        self._real(fd)
        self.synced += 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr("agentd.audit.chain.os.fdatasync", made.fdatasync)
    return made


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is synced for its age."""
    monkeypatch.setattr("agentd.audit.log.LAZY_SECONDS", 600.0)


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "audit")


def append(log: AuditLog, event: Event = START, *, synced: bool = False) -> Position:
    """Not in the main thread, which never writes."""
    found: list[Position | AuditError] = []

    def work() -> None:
        try:
            found.append(log.append(event, synced=synced))
        except AuditError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(found[0], AuditError):
        raise found[0]
    return found[0]


def until_synced(disk: Disk, count: int) -> None:
    deadline = time.monotonic() + WAIT
    while disk.synced < count:
        assert time.monotonic() < deadline, "nothing was synced"
        time.sleep(0.005)


@pytest.mark.usefixtures("patient")
def test_it_is_in_the_file_and_goes_to_disk_with_the_next(directory: str, disk: Disk) -> None:
    log = AuditLog(directory)
    before = disk.synced
    assert append(log).seq == 2
    log.submit(START, lazily=True)
    assert append(log).seq == 4
    assert len(list(records(directory))) == 4
    assert disk.synced == before
    append(log, synced=True)
    assert disk.synced == before + 1
    log.close()
    assert disk.synced == before + 1
    assert verify(directory).ok


def test_it_is_on_disk_soon_though_nothing_follows(directory: str, disk: Disk) -> None:
    log = AuditLog(directory)
    for count in range(disk.synced + 1, disk.synced + 6):
        append(log)
        until_synced(disk, count)
    log.close()


@pytest.mark.usefixtures("patient")
def test_it_is_on_disk_when_the_log_is_closed(directory: str, disk: Disk) -> None:
    log = AuditLog(directory)
    before = disk.synced
    append(log)
    log.close()
    assert disk.synced == before + 1


@pytest.mark.usefixtures("patient")
def test_a_file_that_is_full_is_synced_before_the_next(directory: str, disk: Disk) -> None:
    log = AuditLog(directory, keep=Keep(file_bytes=1000))
    before, count = disk.synced, 0
    while len(list(Path(directory).glob("audit-*.jsonl"))) == 1:
        append(log)
        count += 1
    assert count > 1
    assert disk.synced == before + 1
    log.close()
    assert verify(directory).ok


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("times", [1, 2])
def test_what_a_failed_sync_leaves_in_doubt_is_written_again(
    directory: str, disk: Disk, times: int
) -> None:
    log = AuditLog(directory)
    append(log, Event(kind=Kind.START, request="first"))
    append(log, Event(kind=Kind.START, request="second"))
    disk.refusals = times
    for _ in range(times):
        with pytest.raises(AuditError, match="Input/output error"):
            append(log, Event(kind=Kind.START, request="refused"), synced=True)
    assert append(log, Event(kind=Kind.START, request="third"), synced=True).seq == 5
    log.close()
    found = list(records(directory))
    assert [record.request for record in found] == ["", "first", "second", "", "third"]
    assert found[3].kind == "loss" and found[3].fields["lost"] == times
    assert verify(directory).ok


def test_a_sync_that_failed_is_tried_again(
    directory: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.audit.log._RETRY_SECONDS", 0.05)
    log = AuditLog(directory)
    before, disk.refusals = disk.synced, 2
    append(log)
    until_synced(disk, before + 1)
    assert log.counts.failures == 2 and log.counts.lost == 0
    log.close()
    assert [record.kind for record in records(directory)] == ["opened", "start"]


def test_a_disk_that_stays_broken_is_not_kept_busy(
    directory: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.audit.log._RETRY_SECONDS", 0.2)
    log, began = AuditLog(directory), time.monotonic()
    disk.refusals = 1_000_000
    append(log)
    with pytest.raises(AuditError):
        append(log, synced=True)
    time.sleep(0.5)
    refused = disk.refused
    assert refused < 6 + (time.monotonic() - began) / 0.2
    disk.refusals = 0
    log.close()
    assert [record.kind for record in records(directory)] == ["opened", "start", "loss"]
    assert verify(directory).ok


def test_only_what_is_synced_counts_as_a_commit(directory: str, disk: Disk) -> None:
    log = AuditLog(directory)
    for count in range(1, 4):
        append(log)
        until_synced(disk, count + 1)
    append(log, synced=True)
    log.close()
    assert log.counts.records == 5
    assert log.counts.commits == disk.synced == 5


def test_a_killed_process_leaves_it(directory: str) -> None:
    code = """
import os, signal, sys, threading
from agentd.audit import log
from agentd.model.audit import Event, Kind
log.LAZY_SECONDS = 600.0
made = log.AuditLog(sys.argv[1])
def work():
    made.append(Event(kind=Kind.START, request="req-1"), synced=False)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=work).start()
"""
    done = subprocess.run([sys.executable, "-c", code, directory], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [record.kind for record in records(directory)] == ["opened", "start"]
