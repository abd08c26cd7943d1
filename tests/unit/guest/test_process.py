"""When a disk counts as full, what is not watched, and what ended commands keep."""

import errno
import gc
import os
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from agentd.guest.history import MAX_EXITED, DetachedCommand, History
from agentd.guest.loop import Loop
from agentd.guest.process import ExitInfo
from agentd.guest.processes import Processes, disk_is_full
from agentd.guest.spawn_request import SpawnError, SpawnRequest


@pytest.mark.parametrize(
    ("blocks", "available", "files", "free", "full"),
    [
        (10, 1, 10, 1, False),
        (10, 0, 10, 1, True),
        (10, 1, 10, 0, True),
        (10, 1, 0, 0, False),
        (0, 0, 0, 0, False),
    ],
)
def test_disk_is_full(
    monkeypatch: pytest.MonkeyPatch, blocks: int, available: int, files: int, free: int, full: bool
) -> None:
    found = SimpleNamespace(
        f_blocks=blocks, f_bavail=available, f_files=files, f_favail=free, f_flag=os.ST_NOSUID
    )
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    assert disk_is_full(["/tmp"]) is full


def test_a_path_that_is_gone_is_not_full() -> None:
    assert disk_is_full(["/no/such/path"]) is False


@pytest.fixture
def processes() -> Iterator[Processes]:
    loop = Loop()
    made = Processes(loop)
    yield made
    for left in list(made):  # not all children, as an agent ends them: some are of other tests
        left.abandon()
        os.waitid(os.P_PID, left.pid, os.WEXITED)
    made.close()
    loop.close()


@pytest.mark.parametrize("more", [{}, {"pty": (24, 80)}, {"stdin": -2}])
@pytest.mark.parametrize("watched", range(3))
def test_what_cannot_be_watched_has_failed_and_does_not_run_on(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, watched: int, more: dict[str, object]
) -> None:
    """As where the kernel has no room for a further watch, or no memory."""
    watch, left = processes._loop.watch, iter(range(watched))

    def no_room(*what: object) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        watch(*what)  # type: ignore[arg-type]

    processes._open_null()
    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(processes._loop, "watch", no_room)
    ends: list[ExitInfo] = []
    request = SpawnRequest(["sleep", "600"], **more)  # type: ignore[arg-type]
    try:
        processes.start(request, on_output=lambda *_: None, on_exit=ends.append)
    except SpawnError as error:
        assert error.errno == errno.ENOSPC
    else:
        (started,) = processes
        started.abandon()
    deadline = time.monotonic() + 60
    while list(processes):
        assert time.monotonic() < deadline, "it runs on"
        processes.reap()
        time.sleep(0.01)
    assert set(os.listdir("/proc/self/fd")) == before
    assert ends == []


def test_what_runs_keeps_nothing_of_what_was_asked_for(processes: Processes) -> None:
    """A forked one has its limits set by us, and so may fail in ways that we explain."""
    request = SpawnRequest(["sleep", "601"], limits={"open_files": 64})
    started = processes.start(request, on_output=lambda *_: None, on_exit=lambda _: None)
    started.after_start(lambda error: processes._loop.stop())
    del request
    processes._loop.run()
    kept = [each for each in gc.get_objects() if isinstance(each, SpawnRequest)]
    assert ["sleep", "601"] not in [each.argv for each in kept]


def test_what_ended_keeps_little_of_how_it_was_called() -> None:
    history = History()
    for number in range(MAX_EXITED):
        record = DetachedCommand()
        argv = ["prog", *(f"{word:06}" for word in range(20_000))]
        record.process = SimpleNamespace(pid=number, tag=None, argv=argv)  # type: ignore[assignment]
        history.add(record)
        record.on_exit(ExitInfo(0, None, "exited", 1.0, 1.0, 1, truncated=False))
    kept = [record.process.argv for record in history.all()]
    assert len(kept) == MAX_EXITED
    assert all(argv[:2] == ["prog", "000000"] for argv in kept)
    assert sum(len(word) for argv in kept for word in argv) < 2 << 20
