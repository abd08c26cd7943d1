"""The audit log by the doors of a daemon: its command line, its REST, and what lies on its disk."""

import contextlib
import ctypes
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, running, until

from agentd.model.audit import Position


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def test_it_is_read_from_the_daemon_that_is_named(daemon: Daemon, tmp_path: Path) -> None:
    box = daemon.sandbox()
    daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "true"})
    tail = daemon.cli("audit", "tail", "-n", "2", "--json")
    assert tail.returncode == 0, tail.stderr
    last = json.loads(tail.stdout.splitlines()[-1])
    assert last["kind"] == "end" and last["sandbox"] == box
    head = daemon.ask("GET", "/v1/audit/head").json
    assert Position.parse(head["head"]).seq == last["seq"]
    assert daemon.cli("audit", "head").stdout.decode().strip() == head["head"]
    by_files = daemon.cli("audit", "head", "--dir", daemon.audit)
    assert by_files.stdout.decode().strip() == head["head"]
    out = tmp_path / "out"
    assert daemon.cli("audit", "export", "--from", "2", "--out", str(out)).returncode == 0
    (file,) = Path(daemon.audit).glob("audit-*.jsonl")
    assert out.read_bytes() == b"".join(file.read_bytes().splitlines(keepends=True)[1:])
    verified = daemon.cli("audit", "verify", "--head", head["head"])
    assert verified.returncode == 0 and b"its end included" in verified.stdout
    other = daemon.cli("audit", "verify", "--head", f"1:{'0' * 64}")
    assert other.returncode == 1 and b"written anew" in other.stdout


def test_pages_follow_on_each_other(daemon: Daemon) -> None:
    daemon.ask("POST", f"/v1/sandboxes/{daemon.sandbox()}/exec", {"cmd": "true"})
    seqs: list[int] = []
    at: int | None = 1
    while at is not None:
        page = daemon.ask("GET", f"/v1/audit/records?from={at}&limit=2").json
        assert len(page["records"]) <= 2
        seqs += [record["seq"] for record in page["records"]]
        at = page["next"]
    assert seqs == list(range(1, len(seqs) + 1)) and len(seqs) > 2
    assert daemon.ask("GET", "/v1/audit/records?limit=1001").code == "invalid_input"
    assert daemon.ask("GET", "/v1/audit/records?from=100000").json == {"records": [], "next": None}


def test_only_an_admin_reads_it(daemon: Daemon) -> None:
    key = daemon.key("reader")
    for path in ("/v1/audit/head", "/v1/audit/records"):
        assert daemon.ask("GET", path, key=key).status == 403
    refused = daemon.cli("audit", "tail", key=key)
    assert refused.returncode == 125 and b"lacks the scope 'admin'" in refused.stderr


@pytest.mark.parametrize("takes", ["files", "directory"])
def test_files_removed_while_it_runs_stop_it_and_are_told(daemon: Daemon, takes: str) -> None:
    box = daemon.sandbox()
    if takes == "files":
        for file in Path(daemon.audit).glob("audit-*.jsonl"):
            file.unlink()
    else:
        shutil.rmtree(daemon.audit)
    refused = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "touch /workspace/done"})
    assert refused.status == 503 and refused.code == "audit_error"
    read = daemon.ask("GET", f"/v1/sandboxes/{box}/files?path=/workspace/done")
    assert read.status == 503
    until(lambda: daemon.ask("GET", "/readyz").status == 503)
    assert b"accept-loss" in daemon.ask("GET", "/readyz").body
    until(lambda: b"the audit log is not as it was written" in daemon.log)
    daemon.stop()
    daemon.start()
    assert not daemon.is_up
    daemon.stop(kill=True)
    for words in (("--url", daemon.url), ("--dir", daemon.audit)):
        assert daemon.cli("audit", "verify", *words).returncode != 0
    accepted = daemon.cli("audit", "accept-loss", "--dir", daemon.audit)
    assert accepted.returncode == 0 and b"loss" in accepted.stdout, accepted
    daemon.start()
    assert daemon.is_up, daemon.log.decode()
    assert daemon.ask("GET", "/readyz").status == 200
    assert daemon.ask("GET", f"/v1/sandboxes/{box}/files?path=/workspace/done").status == 404
    told = daemon.cli("audit", "verify")
    assert told.returncode == 0 and b"loss" in told.stdout and b"accepted" in told.stdout


@pytest.mark.parametrize("copies", [1, 3])
def test_a_last_record_that_stands_twice_keeps_it_from_starting(
    daemon: Daemon, copies: int
) -> None:
    daemon.stop()
    (file,) = Path(daemon.audit).glob("audit-*.jsonl")
    last = file.read_bytes().splitlines(keepends=True)[-1]
    with file.open("ab") as log:
        log.write(last * copies)
    before = file.read_bytes()
    assert daemon.cli("audit", "verify", "--dir", daemon.audit).returncode == 1
    daemon.start()
    assert not daemon.is_up
    assert b"was changed: its last record stands there more than once" in daemon.log
    assert b"accept-loss" in daemon.log and file.read_bytes() == before
    daemon.stop(kill=True)
    assert daemon.cli("audit", "accept-loss", "--dir", daemon.audit).returncode == 0
    daemon.start()
    assert daemon.is_up, daemon.log.decode()
    assert daemon.cli("audit", "verify").returncode == 0


_PUT: dict[str, Callable[[Path], object]] = {
    "a symbolic link": lambda file: file.symlink_to(file.with_name("kept")),
    "a fifo": os.mkfifo,
    "a directory": Path.mkdir,
}


@pytest.mark.parametrize("kind", _PUT)
@pytest.mark.parametrize("runs", [False, True])
def test_what_is_in_the_place_of_its_file_is_said(daemon: Daemon, kind: str, runs: bool) -> None:
    if not runs:
        daemon.stop()
    (file,) = Path(daemon.audit).glob("audit-*.jsonl")
    file.rename(file.with_name("kept"))
    _PUT[kind](file)
    if runs:
        refused = daemon.ask("POST", "/v1/sandboxes", {}).body
        daemon.stop()
    else:
        daemon.start()
        assert not daemon.is_up
        refused = daemon.log
        daemon.stop(kill=True)
    assert f"{file} is {kind}, and no file of the audit log".encode() in refused, refused
    assert b"move it away" in refused and b"free space" not in refused
    by_hand = daemon.cli("audit", "accept-loss", "--dir", daemon.audit)
    assert by_hand.returncode != 0 and b"move it away" in by_hand.stderr, by_hand
    file.rename(file.with_name("moved"))
    file.with_name("kept").rename(file)
    daemon.start()
    assert daemon.is_up, daemon.log.decode()


@contextlib.contextmanager
def _with_a_small_log(folder: Path) -> Iterator[Daemon]:
    """A daemon whose log has a disk of its own, of 4 MiB."""
    daemon, libc = Daemon(folder), ctypes.CDLL(None, use_errno=True)
    place = daemon.state / "audit"
    place.mkdir(0o700, parents=True)
    daemon.state.chmod(0o700)
    if libc.mount(b"none", os.fsencode(place), b"tmpfs", 0, b"size=4m,mode=700"):
        pytest.skip(f"no tmpfs can be mounted: {os.strerror(ctypes.get_errno())}")
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end()
        assert libc.umount2(os.fsencode(place), 2) == 0


@pytest.mark.root
def test_what_could_not_begin_leaves_its_sandbox_idle_and_has_no_end(tmp_path: Path) -> None:
    with _with_a_small_log(tmp_path) as daemon:
        path = f"/v1/sandboxes/{daemon.sandbox(idle_timeout='1s')}"
        filler = _fill(daemon, path)
        for where in ("files?path=/etc/passwd", "files/tar?path=/etc", "ports/80/"):
            assert daemon.ask("GET", f"{path}/{where}").code == "audit_error"
        assert daemon.ask("PUT", f"{path}/files?path=/workspace/a", b"a").code == "audit_error"
        filler.unlink()
        until(lambda: daemon.ask("GET", path).json["paused_by"] == "idle")
        assert not daemon.records(kind="start") and not daemon.records(kind="end")


@pytest.mark.root
@pytest.mark.parametrize("how", ["moved", "full"])
def test_what_is_kept_changes_only_once_that_is_written_down(tmp_path: Path, how: str) -> None:
    with _with_a_small_log(tmp_path) as daemon:
        box = daemon.sandbox()
        kept = daemon.ask("POST", f"/v1/sandboxes/{box}/snapshot").json["id"]
        key = daemon.ask("POST", "/v1/keys", {"name": "k", "scopes": ["read"]}).json["id"]
        assert daemon.ask("POST", "/v1/volumes", {"name": "v"}).status == 201
        assert daemon.ask("PUT", "/v1/secrets/A", {"value": "a" * 40}).status == 200
        before = _kept(daemon)
        (file,) = Path(daemon.audit).glob("audit-*.jsonl")
        if how == "moved":
            aside = file.rename(file.parent / "aside")
        else:
            filler = _fill(daemon, f"/v1/sandboxes/{box}")
        for method, path, body in (
            ("PUT", "/v1/secrets/B", {"value": "b" * 40}),
            ("PUT", "/v1/secrets/A", {"value": "c" * 40}),
            ("DELETE", "/v1/secrets/A", None),
            ("POST", "/v1/volumes", {"name": "w"}),
            ("POST", "/v1/volumes/v/snapshot", {"name": "w"}),
            ("DELETE", "/v1/volumes/v", None),
            ("POST", "/v1/keys", {"name": "l", "scopes": ["read"]}),
            ("DELETE", f"/v1/keys/{key}", None),
            ("POST", f"/v1/sandboxes/{box}/snapshot", None),
            ("GET", f"/v1/snapshots/{kept}/export", None),
            ("DELETE", f"/v1/snapshots/{kept}", None),
            ("PATCH", f"/v1/sandboxes/{box}", {"labels": {"a": "b"}}),
        ):
            refused = daemon.ask(method, path, body)
            assert (refused.status, refused.code) == (503, "audit_error"), (path, refused.body)
        if how == "moved":
            aside.rename(file)
        else:
            filler.unlink()
        until(lambda: daemon.ask("GET", "/readyz").status == 200)
        assert _kept(daemon) == before
        for path in ("/v1/secrets/A", f"/v1/keys/{key}", "/v1/volumes/v", f"/v1/snapshots/{kept}"):
            assert daemon.ask("DELETE", path).status == 204
        told = [str(record.kind) for record in daemon.records()]
        changes = {kind: told.count(kind) for kind in set(told) if "_" in kind}
        for kind in ("secret_set", "secret_removed", "volume_created", "volume_deleted"):
            assert changes[kind] == 1, told
        for kind in ("key_created", "key_revoked", "snapshot_deleted"):
            assert changes[kind] == 1, told


def _kept(daemon: Daemon) -> list[object]:
    nouns = ("secrets", "volumes", "keys", "snapshots")
    kept = [daemon.ask("GET", f"/v1/{noun}").json for noun in nouns]
    boxes = daemon.ask("GET", "/v1/sandboxes").json["sandboxes"]
    return [*kept, *((box["id"], box["labels"]) for box in boxes)]  # what else they tell goes on


def _fill(daemon: Daemon, sandbox: str) -> Path:
    """Leave the log no room, its last page neither."""
    path = Path(daemon.audit) / "filler"
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    until(lambda: daemon.ask("PATCH", sandbox, {"labels": {}}).status == 503)
    return path


def test_a_log_that_cannot_be_read_is_told_and_goes_on_once_it_can(daemon: Daemon) -> None:
    exec_ = f"/v1/sandboxes/{daemon.sandbox()}/exec"
    (file,) = Path(daemon.audit).glob("audit-*.jsonl")
    aside = file.rename(daemon.state / "aside")
    os.mkfifo(file)
    refused = daemon.ask("POST", exec_, {"cmd": "true"})
    assert refused.status == 503 and refused.code == "audit_error"
    until(lambda: daemon.ask("GET", "/readyz").status == 503)
    assert str(file.parent) in daemon.ask("GET", "/readyz").json["message"]
    file.unlink()
    aside.rename(file)
    assert daemon.ask("POST", exec_, {"cmd": "true"}).status == 200
    until(lambda: daemon.ask("GET", "/readyz").status == 200)
    assert daemon.cli("audit", "verify").returncode == 0


def test_a_changed_last_line_is_no_torn_write(daemon: Daemon) -> None:
    daemon.sandbox()
    daemon.stop()
    (file,) = Path(daemon.audit).glob("audit-*.jsonl")
    data = file.read_bytes()
    file.write_bytes(data[:-20] + b"00000" + data[-15:])
    daemon.start()
    assert not daemon.is_up and b"was changed" in daemon.log
    daemon.stop(kill=True)
    assert not list(Path(daemon.audit).glob("*.torn-*"))
    assert daemon.cli("audit", "accept-loss", "--dir", daemon.audit).returncode == 0
    daemon.start()
    assert daemon.is_up
    told = daemon.cli("audit", "verify", "--dir", daemon.audit)
    assert told.returncode == 0 and b": cut: " in told.stdout and b": loss: " in told.stdout


@pytest.mark.parametrize("where", ["state", "empty", "emptied", "removed", "none"])
def test_no_log_is_not_well(daemon: Daemon, tmp_path: Path, where: str) -> None:
    box = daemon.sandbox()
    daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "true"})
    daemon.stop()
    directory = {"state": str(daemon.state), "empty": str(tmp_path), "none": "/nowhere"}.get(
        where, daemon.audit
    )
    for file in Path(daemon.audit).glob("audit-*.jsonl"):
        if where == "emptied":
            os.truncate(file, 0)
        elif where == "removed":
            file.unlink()
    found = daemon.cli("audit", "verify", "--dir", directory)
    assert found.returncode == 1
    assert b"no audit log here" in found.stderr and b"--dir" in found.stderr


_CHANGED: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "no JSON": lambda lines: [*lines[:3], b"x" * len(lines[3][1:]) + b"\n", *lines[4:]],
    "no UTF-8": lambda lines: [*lines[:3], b"\xff\xfe\n", *lines[4:]],
    "nothing": lambda lines: [*lines[:3], b"\n", *lines[4:]],
    "a number": lambda lines: [*lines[:3], b"7\n", *lines[4:]],
    "deep": lambda lines: [*lines[:3], b"[" * 100_000 + b"\n", *lines[4:]],
    "two in one": lambda lines: [*lines[:3], lines[3][:-1] + b"," + lines[4], *lines[5:]],
    "the first": lambda lines: [b"x\n", *lines[1:]],
    "the last": lambda lines: [*lines[:-1], b"x\n"],
    "repeated": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "removed": lambda lines: [*lines[:3], *lines[4:]],
    "emptied": lambda _: [],
}


@pytest.mark.parametrize("how", [*_CHANGED, "files gone", "folder gone"])
def test_what_changed_under_a_running_daemon_is_found_through_it(daemon: Daemon, how: str) -> None:
    daemon.ask("POST", f"/v1/sandboxes/{daemon.sandbox()}/exec", {"cmd": "true"})
    (file,) = Path(daemon.audit).glob("audit-*.jsonl")
    if how in _CHANGED:
        file.write_bytes(b"".join(_CHANGED[how](file.read_bytes().splitlines(keepends=True))))
    elif how == "files gone":
        file.unlink()
    else:
        shutil.rmtree(daemon.audit)
    found = daemon.cli("audit", "verify")
    assert found.returncode == 1 and b"not ok" in found.stdout, found
    verdict = json.loads(daemon.cli("audit", "verify", "--json").stdout)
    assert not verdict["ok"] and verdict["problems"]
    empty = how in ("emptied", "files gone", "folder gone")
    for words in (["tail", "--json"], ["export"], ["head"]):
        told = daemon.cli("audit", *words)
        assert b"internal error" not in told.stderr, told
        if empty:
            assert told.returncode == 1 and b"no audit log here" in told.stderr, told
