"""Whether the disk of the state directory takes what must be written."""

import threading
import time
from pathlib import Path

import pytest

from agentd.daemon import disk
from agentd.daemon.disk import Disk


def test_a_disk_that_does_not_answer_is_told_until_it_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The thread that looks stands still with it: who asks must hear of that from elsewhere."""
    monkeypatch.setattr(disk, "_SILENT_SECONDS", 0.01)
    answers = threading.Event()

    def missing() -> str:
        answers.wait()
        return ""

    watched = Disk(str(tmp_path), lambda: 0, missing)
    thread = threading.Thread(target=watched.look)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not watched.trouble:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert watched.trouble.startswith(f"the disk of {tmp_path} has not answered for ")
    finally:
        answers.set()
        thread.join()
    assert watched.trouble == ""
