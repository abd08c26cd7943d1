"""When a disk counts as full."""

import os
from types import SimpleNamespace

import pytest

from agentd.guest.processes import disk_is_full


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
