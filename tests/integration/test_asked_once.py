"""One request that looks at several things is one admission in the audit log, and one question."""

from collections.abc import Iterator

import pytest
from tests.security.daemons import Daemon, running


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def admitted(daemon: Daemon, sandbox: str) -> list[str]:
    return [one.capability for one in daemon.records(kind="admission", sandbox=sandbox)]


def test_a_download_is_one_read(daemon: Daemon) -> None:
    id_ = daemon.sandbox()
    at = f"/v1/sandboxes/{id_}/files?path=/workspace/a"
    assert daemon.ask("PUT", at, b"0123456789").status == 200
    for sent, status, body, placed in (
        (None, 200, b"0123456789", None),
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=8-", 206, b"89", "bytes 8-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=4-2", 200, b"0123456789", None),
    ):
        before = admitted(daemon, id_)
        found = daemon.ask("GET", at, **({"Range": sent} if sent else {}))
        assert (found.status, found.body) == (status, body), sent
        assert found.headers.get("content-range") == placed
        assert admitted(daemon, id_)[len(before) :] == ["fs.read.v1"], sent
    for sent in ("bytes=10-", "bytes=-0"):
        assert daemon.ask("GET", at, Range=sent).status == 416, sent


def test_a_move_is_one_write_and_its_repeat_is_one(daemon: Daemon) -> None:
    id_ = daemon.sandbox()
    files = f"/v1/sandboxes/{id_}/files"
    assert daemon.ask("PUT", f"{files}?path=/workspace/a", b"x").status == 200
    before = admitted(daemon, id_)
    body = {"path": "/workspace/a", "to": "/workspace/b"}
    for count in (1, 2):
        moved = daemon.ask("POST", f"{files}/move", body, Idempotency_Key="k-1")
        assert moved.status == 204, moved.body
        assert admitted(daemon, id_)[len(before) :] == ["fs.write.v1"] * count
